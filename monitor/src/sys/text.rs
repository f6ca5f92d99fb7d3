//! Files of the kernel as text.

use std::path::Path;
use std::{fs, io};

/// Reads a file as text. In many files of the kernel stand names that users choose: of processes,
/// control groups and places where something is mounted. They need not be UTF-8. What is not is
/// replaced, so that no name hides what stands beside it.
///
/// # Errors
/// When the file cannot be read.
pub(crate) fn read(path: impl AsRef<Path>) -> io::Result<String> {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_no_text_hides_nothing() {
        let thread = std::thread::spawn(|| {
            let name = fs::write("/proc/thread-self/comm", b"a\xffb\xc3");
            (name.unwrap(), read("/proc/thread-self/status").unwrap()).1
        });
        let status = thread.join().unwrap();
        assert!(
            status.starts_with("Name:\ta\u{fffd}b\u{fffd}\n"),
            "{status}"
        );
        assert!(status.contains("\nUid:\t"), "{status}");
    }
}
