//! Asks the node agent over its socket: one small request after the other on one connection, each
//! with an answer whose length is said, and a stream as the last one. What needs more takes a real
//! client.

use std::env;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt};
use serde_json::Value;

/// The socket of the agent of this host.
const SOCKET: &str = "/run/lifemon/lifemon.sock";
/// The variable that names another one.
const VARIABLE: &str = "LIFEMON_AGENT";
/// The user that stands for all that a user namespace does not have: root of the host, there.
const OVERFLOW_UID: u32 = 65_534;
/// Bytes of a head at most.
const HEAD_BYTES_MAX: u64 = 16 << 10;
/// Bytes of an answer at most.
const BODY_BYTES_MAX: usize = 256 << 20;

/// Returns where the agent's socket is, or would be.
pub(crate) fn socket() -> PathBuf {
    env::var_os(VARIABLE).map_or_else(|| SOCKET.into(), PathBuf::from)
}

/// A connection to the agent. Guards that were made on it hang on it.
#[derive(Debug)]
pub(crate) struct Client(BufReader<UnixStream>);

/// An answer of the agent.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Its status.
    pub(crate) status: u16,
    /// Its body.
    pub(crate) body: String,
}

impl Answer {
    /// Returns whether the request was granted.
    pub(crate) const fn is_granted(&self) -> bool {
        matches!(self.status, 200..=299)
    }

    /// Returns the body as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or(Value::Null)
    }

    /// Returns the stable code and the detail of a problem.
    pub(crate) fn problem(&self) -> (String, String) {
        let problem = self.json();
        let field = |name: &str| problem[name].as_str().unwrap_or_default().to_owned();
        (field("code"), field("detail"))
    }
}

impl Client {
    /// Connects, to an agent that is root's. `limit` is for each answer; `None` waits for ever.
    ///
    /// # Errors
    /// When nobody listens, or somebody who is not root.
    pub(crate) fn connect(limit: Option<Duration>) -> io::Result<Self> {
        let stream = UnixStream::connect(socket())?;
        let owner = getsockopt(&stream, sockopt::PeerCredentials)?.uid();
        let own = nix::unistd::geteuid().as_raw();
        if ![0, OVERFLOW_UID, own].contains(&owner) {
            return Err(io::Error::other("the socket of the agent is not root's"));
        }
        stream.set_read_timeout(limit)?;
        stream.set_write_timeout(Some(Duration::from_secs(10)))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Asks, and waits for the answer. `headers` are whole lines.
    ///
    /// # Errors
    /// When the agent does not answer, or not as it should.
    pub(crate) fn ask(
        &mut self,
        method: &str,
        path: &str,
        headers: &[&str],
        body: &str,
    ) -> io::Result<Answer> {
        self.send(&format!("{method} {path} HTTP/1.1"), headers, body)?;
        let (status, length) = self.read_head()?;
        self.read_body(status, length)
    }

    /// Asks for a stream, and returns what it can be read from; or the answer, where it is refused.
    /// The request is one of HTTP/1.0, so that the body is the lines alone, up to the end of the
    /// connection.
    ///
    /// # Errors
    /// As [`Client::ask`].
    #[cfg(feature = "agent")]
    pub(crate) fn stream(
        mut self,
        path: &str,
    ) -> io::Result<Result<BufReader<UnixStream>, Answer>> {
        self.send(&format!("GET {path} HTTP/1.0"), &[], "")?;
        match self.read_head()? {
            (200, None) => Ok(Ok(self.0)),
            (status, length) => self.read_body(status, length).map(Err),
        }
    }

    fn send(&mut self, request: &str, headers: &[&str], body: &str) -> io::Result<()> {
        let mut head = format!("{request}\r\nhost: lifemon\r\n");
        for line in headers {
            head.push_str(line);
            head.push_str("\r\n");
        }
        head.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
        self.0.get_mut().write_all((head + body).as_bytes())
    }

    /// Returns whether the agent has not closed the connection.
    pub(crate) fn is_open(&self) -> bool {
        let mut sources = [PollFd::new(self.0.get_ref().as_fd(), PollFlags::empty())];
        let polled = poll(&mut sources, PollTimeout::ZERO);
        let ended = PollFlags::POLLHUP | PollFlags::POLLERR;
        polled.is_ok()
            && !sources[0]
                .revents()
                .is_some_and(|events| events.intersects(ended))
    }

    /// Reads the status, and the length of the body where that is said.
    fn read_head(&mut self) -> io::Result<(u16, Option<usize>)> {
        let mut head = (&mut self.0).take(HEAD_BYTES_MAX);
        let mut line = String::new();
        head.read_line(&mut line)?;
        let status = line
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        let status = status.ok_or_else(wrong)?;
        let mut length = None;
        loop {
            line.clear();
            if head.read_line(&mut line)? == 0 {
                return Err(wrong());
            }
            let Some((name, value)) = line.trim_end().split_once(':') else {
                return Ok((status, length));
            };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().ok();
            }
        }
    }

    fn read_body(&mut self, status: u16, length: Option<usize>) -> io::Result<Answer> {
        let length = length.filter(|length| *length <= BODY_BYTES_MAX);
        let mut body = vec![0; length.ok_or_else(wrong)?];
        self.0.read_exact(&mut body)?;
        let body = String::from_utf8(body).map_err(|_| wrong())?;
        Ok(Answer { status, body })
    }
}

fn wrong() -> io::Error {
    io::Error::other("the agent does not answer as it should")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_one_after_the_other() {
        let (own, mut its) = UnixStream::pair().unwrap();
        let mut client = Client(BufReader::new(own));
        its.write_all(
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}HTTP/1.1 404 No\r\ncontent-length: \
              24\r\nx: y\r\n\r\n{\"code\":\"a\",\"detail\":\"\"}HTTP/1.1 200 OK\r\n\r\n",
        )
        .unwrap();
        drop(its);
        let mut read = || {
            let (status, length) = client.read_head()?;
            client.read_body(status, length)
        };
        let first = read().unwrap();
        assert!(first.is_granted() && first.body == "{}");
        let second = read().unwrap();
        assert_eq!((second.status, second.problem().0), (404, "a".to_owned()));
        assert!(read().is_err(), "no length");
        assert!(read().is_err(), "nothing more");
    }

    #[cfg(feature = "agent")]
    #[test]
    fn a_stream_is_what_follows_the_head_and_a_refusal_is_an_answer() {
        for (answer, lines) in [
            (
                "HTTP/1.0 200 OK\r\ncontent-type: x\r\n\r\na\nb\n",
                Ok("a\nb\n"),
            ),
            ("HTTP/1.0 429 No\r\ncontent-length: 2\r\n\r\n{}", Err(429)),
        ] {
            let (own, mut its) = UnixStream::pair().unwrap();
            its.write_all(answer.as_bytes()).unwrap();
            its.shutdown(std::net::Shutdown::Write).unwrap();
            let stream = Client(BufReader::new(own)).stream("/").unwrap();
            let read = stream.map(|stream| io::read_to_string(stream).unwrap());
            let read = read.map_err(|answer| answer.status);
            assert_eq!(read, lines.map(str::to_owned));
        }
    }
}
