//! The processors that there are artefacts for, and their names.

/// A processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Processor {
    /// That of most servers.
    X86_64,
    /// 64-bit ARM.
    Arm64,
}

impl Processor {
    /// All of them.
    pub(crate) const ALL: [Self; 2] = [Self::X86_64, Self::Arm64];

    /// Returns the processor of this machine.
    pub(crate) fn here() -> Option<Self> {
        let is_here = |processor: &Self| processor.rust() == std::env::consts::ARCH;
        Self::ALL.into_iter().find(is_here)
    }

    /// Returns the name that Rust has for it, and `uname -m`.
    pub(crate) fn rust(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Arm64 => "aarch64",
        }
    }

    /// Returns the name that Debian and images have for it.
    pub(crate) fn debian(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// Returns what cargo builds for.
    pub(crate) fn target(self) -> String {
        format!("{}-unknown-linux-gnu", self.rust())
    }
}
