//! Frames between core and front: two lengths, a head of JSON, a body of bytes. Connections go over
//! a socket of their own, each with its number.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Bytes of a head at most: a body of a request, as JSON in JSON, and what is around it.
pub(super) const HEAD_BYTES_MAX: u32 = 256 << 10;
/// Bytes of a body at most: more than the processes of any host need.
pub(super) const BODY_BYTES_MAX: u32 = 256 << 20;

/// Writes a frame.
pub(super) async fn write(
    to: &mut (impl AsyncWrite + Unpin),
    head: &impl Serialize,
    body: &[u8],
) -> io::Result<()> {
    let head = serde_json::to_vec(head)?;
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).map_err(io::Error::other);
    let mut lengths = [0; 8];
    lengths[..4].copy_from_slice(&length(&head)?.to_le_bytes());
    lengths[4..].copy_from_slice(&length(body)?.to_le_bytes());
    let start = [&lengths[..], &head].concat();
    to.write_all(&start).await?;
    to.write_all(body).await
}

/// Reads a frame; `None` at the end. `body_max` limits the body.
pub(super) async fn read<T: DeserializeOwned>(
    from: &mut (impl AsyncRead + Unpin),
    body_max: u32,
) -> io::Result<Option<(T, Vec<u8>)>> {
    let mut lengths = [0; 8];
    if from.read(&mut lengths[..1]).await? == 0 {
        return Ok(None);
    }
    from.read_exact(&mut lengths[1..]).await?;
    let length = |at: usize| lengths[at..at + 4].try_into().map_or(0, u32::from_le_bytes);
    let (head, body) = (length(0), length(4));
    if head > HEAD_BYTES_MAX || body > body_max {
        return Err(io::Error::other("a frame is too long"));
    }
    let mut bytes = vec![0; head as usize];
    from.read_exact(&mut bytes).await?;
    let head = serde_json::from_slice(&bytes)?;
    let mut bytes = vec![0; body as usize];
    from.read_exact(&mut bytes).await?;
    Ok(Some((head, bytes)))
}

/// Sends one descriptor with a number. Does not wait where the socket is a non-blocking one.
pub(super) fn send_descriptor(
    to: impl AsFd,
    number: u64,
    descriptor: BorrowedFd<'_>,
) -> io::Result<()> {
    let bytes = number.to_le_bytes();
    let descriptors = [descriptor];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    let parts = [IoSlice::new(&bytes)];
    sendmsg(to, &parts, &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives what [`send_descriptor`] has sent; `None` at the end. Of more descriptors than one the
/// others are closed.
pub(super) fn receive_descriptor(
    from: impl AsFd,
    bytes: &mut [u8],
) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(bytes)];
    let received = recvmsg(from, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut first = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            for descriptor in descriptors {
                first.get_or_insert(descriptor);
            }
        }
    }
    Ok((received.bytes, first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_frame_is_read_as_it_was_written_and_a_long_one_is_refused() {
        let mut written = Vec::new();
        write(&mut written, &7_u8, b"body").await.unwrap();
        let (head, body) = read::<u8>(&mut &written[..], 4).await.unwrap().unwrap();
        assert_eq!((head, &body[..]), (7, &b"body"[..]));
        assert!(read::<u8>(&mut &written[..], 3).await.is_err());
        assert!(read::<u8>(&mut &written[..5], 4).await.is_err());
        assert!(read::<u8>(&mut &b""[..], 4).await.unwrap().is_none());
    }
}
