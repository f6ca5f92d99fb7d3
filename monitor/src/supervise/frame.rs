//! Frames: four bytes of length, big-endian, then that many bytes, which are JSON. Nothing here
//! interprets the content.

use std::io::{self, Read};

use serde::de::DeserializeOwned;

/// Bytes of one frame at most. A longer length means that the other side does not use this format,
/// and nothing that it sends can be trusted any more.
pub const FRAME_BYTES_MAX: usize = 16 << 20;

/// Bytes of the length before each frame.
pub const HEADER_BYTES: usize = 4;

/// Bytes of one read.
const READ_BYTES: usize = 64 << 10;

/// The reason why a stream of frames cannot continue.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// A frame is larger than allowed.
    #[error("a message of {bytes} bytes is too large: at most {FRAME_BYTES_MAX} are allowed")]
    TooLarge {
        /// Its size.
        bytes: u64,
    },
    /// The stream ended inside a frame.
    #[error("the stream ended inside a message: {got} of {wanted} bytes came")]
    Truncated {
        /// Number of bytes received, the header included.
        got: usize,
        /// Number of bytes announced, the header included.
        wanted: usize,
    },
}

/// The reason why there is no next message.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MessageError {
    /// The bytes received are no frame: nothing that follows can be understood.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The frame is not the JSON of a message. The next one may be.
    #[error("a message is not understood: {0}")]
    NotUnderstood(#[from] serde_json::Error),
}

/// Returns the frame of these bytes.
///
/// # Errors
/// [`FrameError::TooLarge`].
pub fn frame(body: &[u8]) -> Result<Vec<u8>, FrameError> {
    if body.len() > FRAME_BYTES_MAX {
        return Err(FrameError::TooLarge {
            bytes: body.len() as u64,
        });
    }
    let length = body.len() as u32;
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
    bytes.extend(length.to_be_bytes());
    bytes.extend(body);
    Ok(bytes)
}

/// Frames from bytes that come in pieces.
#[derive(Debug, Default)]
pub struct Frames {
    buffer: Vec<u8>,
    /// The bytes at its beginning that were taken: they are removed when they are as many as the
    /// rest, so that each byte is moved once at most.
    taken: usize,
}

impl Frames {
    /// Adds bytes that were read.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.taken >= self.rest().len() {
            self.buffer.drain(..self.taken);
            self.taken = 0;
        }
        self.buffer.extend(bytes);
    }

    /// Returns the bytes that were not taken yet.
    fn rest(&self) -> &[u8] {
        &self.buffer[self.taken..]
    }

    /// Takes the messages that are whole, one after the other. After a [`MessageError::Frame`]
    /// nothing else comes.
    pub fn messages<M: DeserializeOwned>(
        &mut self,
    ) -> impl Iterator<Item = Result<M, MessageError>> + '_ {
        let mut is_readable = true;
        std::iter::from_fn(move || {
            let body = match self.take() {
                _ if !is_readable => return None,
                Ok(body) => body?,
                Err(error) => {
                    is_readable = false;
                    return Some(Err(error.into()));
                }
            };
            Some(serde_json::from_slice(&body).map_err(MessageError::from))
        })
    }

    /// Takes the next whole frame.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`], as soon as the length is there.
    pub fn take(&mut self) -> Result<Option<Vec<u8>>, FrameError> {
        let Some(wanted) = self.wanted() else {
            return Ok(None);
        };
        if wanted > HEADER_BYTES + FRAME_BYTES_MAX {
            let bytes = (wanted - HEADER_BYTES) as u64;
            return Err(FrameError::TooLarge { bytes });
        }
        let Some(whole) = self.rest().get(..wanted) else {
            return Ok(None);
        };
        let body = whole[HEADER_BYTES..].to_vec();
        self.taken += wanted;
        Ok(Some(body))
    }

    /// Checks that the stream may end here.
    ///
    /// # Errors
    /// [`FrameError::Truncated`] inside a frame.
    pub fn finish(&self) -> Result<(), FrameError> {
        if self.rest().is_empty() {
            return Ok(());
        }
        Err(FrameError::Truncated {
            got: self.rest().len(),
            wanted: self.wanted().unwrap_or(HEADER_BYTES),
        })
    }

    /// Reads once; returns whether the stream has not ended.
    ///
    /// # Errors
    /// Any error of the reader, `WouldBlock` included.
    pub fn read_from(&mut self, reader: &mut impl Read) -> io::Result<bool> {
        let mut bytes = vec![0; READ_BYTES];
        let count = reader.read(&mut bytes)?;
        self.push(&bytes[..count]);
        Ok(count > 0)
    }

    fn wanted(&self) -> Option<usize> {
        let header = self.rest().first_chunk::<HEADER_BYTES>()?;
        Some(HEADER_BYTES + u32::from_be_bytes(*header) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_in_any_pieces() {
        let bytes = [
            frame(b"one").unwrap(),
            frame(b"").unwrap(),
            frame(b"three").unwrap(),
        ]
        .concat();
        for size in 1..bytes.len() {
            let mut frames = Frames::default();
            let mut found = Vec::new();
            for piece in bytes.chunks(size) {
                frames.push(piece);
                while let Some(body) = frames.take().unwrap() {
                    found.push(body);
                }
            }
            assert_eq!(found, [b"one".to_vec(), Vec::new(), b"three".to_vec()]);
            assert_eq!(frames.finish(), Ok(()));
        }
    }

    /// Moving the rest for each frame took minutes for these.
    #[test]
    fn very_many_frames_in_one_piece_cost_no_more_than_in_many() {
        const FRAMES: usize = 1 << 20;
        let mut frames = Frames::default();
        frames.push(&frame(b"x").unwrap().repeat(FRAMES));
        let begun = std::time::Instant::now();
        let taken = std::iter::from_fn(|| frames.take().unwrap()).count();
        assert_eq!((taken, frames.finish()), (FRAMES, Ok(())));
        assert!(begun.elapsed().as_secs() < 20, "{:?}", begun.elapsed());
        frames.push(b"rest");
        assert_eq!(frames.buffer.len(), 4, "what was taken is let go");
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_its_bytes_come() {
        let mut frames = Frames::default();
        frames.push(&(FRAME_BYTES_MAX as u32 + 1).to_be_bytes());
        let bytes = FRAME_BYTES_MAX as u64 + 1;
        assert_eq!(frames.take(), Err(FrameError::TooLarge { bytes }));
        assert!(frame(&vec![0; FRAME_BYTES_MAX + 1]).is_err());
    }

    #[test]
    fn a_message_that_is_not_understood_does_not_hide_the_next_and_no_frame_hides_all() {
        let mut frames = Frames::default();
        frames.push(
            &[
                frame(b"1").unwrap(),
                frame(b"?").unwrap(),
                frame(b"2").unwrap(),
            ]
            .concat(),
        );
        frames.push(&u32::MAX.to_be_bytes());
        let found: Vec<_> = frames.messages::<u32>().collect();
        assert!(matches!(
            found.as_slice(),
            [
                Ok(1),
                Err(MessageError::NotUnderstood(_)),
                Ok(2),
                Err(MessageError::Frame(_)),
            ]
        ));
    }

    #[test]
    fn an_end_inside_a_frame_is_truncated() {
        let mut frames = Frames::default();
        frames.push(&frame(b"abc").unwrap()[..5]);
        assert_eq!(frames.take(), Ok(None));
        assert_eq!(
            frames.finish(),
            Err(FrameError::Truncated { got: 5, wanted: 7 })
        );
    }
}
