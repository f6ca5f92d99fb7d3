//! What this machine has. Only looks: nothing here changes or installs anything, and no answer is
//! an error, because what is missing is a fact like any other.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::process::Command;
use std::thread;

use lifemon_tools::command::{cargo, output};
use lifemon_tools::privilege::Privilege;
use lifemon_tools::toolchain::{Toolchain, choose, on_path, overridden};

/// The packages that a decision can ask for.
const PACKAGES: [&str; 10] = [
    "libpolly-21-dev",
    "libpolly-22-dev",
    "libpolly-23-dev",
    "libzstd-dev",
    "llvm-21-dev",
    "llvm-22-dev",
    "llvm-23-dev",
    "rust-web-src",
    "rustc-web",
    "zlib1g-dev",
];

/// A bpf-linker that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Linker {
    /// The LLVM it is linked with, where the file tells.
    pub(super) llvm_major: Option<u32>,
}

/// The distribution, as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum System {
    /// Its packages have a rustc with `rust-src` and the LLVM of that.
    Debian12,
    /// Packages come by apt, and those of an LLVM are named as in Debian.
    Debian,
    /// Anything else.
    Other,
}

/// Whose cargo and rustc these are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rust {
    /// Both are of one toolchain of rustup.
    Rustup,
    /// A rustc that is not of cargo's toolchain is first on `PATH`.
    ForeignRustc,
    /// rustup is not on `PATH`.
    NoRustup,
}

/// The machine at one moment.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// Whose cargo and rustc these are.
    pub(super) rust: Rust,
    /// The toolchain of the kernel half, and the LLVM in it.
    pub(super) toolchain: Option<(Toolchain, Option<u32>)>,
    /// What the user wants instead.
    pub(super) overridden: Option<String>,
    /// bpf-linker, when it runs.
    pub(super) linker: Option<Linker>,
    /// The distribution.
    pub(super) system: System,
    /// Those of `PACKAGES` that are installed.
    pub(super) packages: BTreeSet<String>,
    /// The LLVM the user points at.
    pub(super) llvm_prefix: Option<String>,
    /// How root can be had.
    pub(super) privilege: Privilege,
    /// Those of rustfmt and clippy that do not run.
    pub(super) missing_components: Vec<&'static str>,
}

impl Facts {
    /// Looks at everything at once: most of it is waiting for rustup's proxies.
    pub(super) fn gather() -> Self {
        thread::scope(|scope| {
            let toolchain = scope.spawn(toolchain);
            let rust = scope.spawn(rust);
            let rustfmt = scope.spawn(|| missing_component("fmt", "rustfmt"));
            let clippy = scope.spawn(|| missing_component("clippy", "clippy"));
            let linker = linker();
            let packages = packages();
            Self {
                rust: rust.join().unwrap_or(Rust::ForeignRustc),
                toolchain: toolchain.join().unwrap_or(None),
                overridden: overridden(),
                linker,
                system: system(&fs::read_to_string("/etc/os-release").unwrap_or_default()),
                packages,
                llvm_prefix: env::var("LLVM_PREFIX").ok(),
                privilege: Privilege::detect(),
                missing_components: [rustfmt, clippy]
                    .into_iter()
                    .filter_map(|component| component.join().unwrap_or(None))
                    .collect(),
            }
        })
    }
}

fn missing_component(subcommand: &str, component: &'static str) -> Option<&'static str> {
    let runs = output(cargo().args([subcommand, "--version"])).is_some();
    (!runs).then_some(component)
}

fn toolchain() -> Option<(Toolchain, Option<u32>)> {
    let toolchain = choose()?;
    let mut rustc = Command::new(toolchain.sysroot.join("bin/rustc"));
    let llvm_major = output(rustc.arg("-vV")).and_then(|text| llvm_major_of_rustc(&text));
    Some((toolchain, llvm_major))
}

/// Finds the tools of Rust: a distribution's rustc in front of rustup's would compile everything
/// with another version.
fn rust() -> Rust {
    if on_path("rustup").is_none() {
        return Rust::NoRustup;
    }
    let real = |path: &str| fs::canonicalize(path).ok();
    let sysroot = output(Command::new("rustc").args(["--print", "sysroot"]))
        .and_then(|sysroot| real(sysroot.trim_end()));
    let cargo = env::var("CARGO").ok().and_then(|cargo| real(&cargo));
    match (cargo, sysroot) {
        (Some(cargo), Some(sysroot)) if cargo.starts_with(&sysroot) => Rust::Rustup,
        _ => Rust::ForeignRustc,
    }
}

fn linker() -> Option<Linker> {
    let path = on_path("bpf-linker")?;
    output(Command::new(&path).arg("--version"))?;
    let llvm_major = fs::read(path)
        .ok()
        .and_then(|bytes| llvm_major_of_file(&bytes));
    Some(Linker { llvm_major })
}

fn packages() -> BTreeSet<String> {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat=${Package} ${db:Status-Status}\n"]);
    // It fails when one of them is unknown, and lists the others all the same.
    let listing = query
        .args(PACKAGES)
        .output()
        .map(|output| output.stdout)
        .unwrap_or_default();
    String::from_utf8_lossy(&listing)
        .lines()
        .filter_map(|line| line.strip_suffix(" installed"))
        .map(str::to_owned)
        .collect()
}

fn llvm_major_of_rustc(verbose_version: &str) -> Option<u32> {
    let version = verbose_version
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))?;
    version.split('.').next()?.parse().ok()
}

/// Returns the name of the shared library an executable asks for: `libLLVM.so.22.1` or
/// `libLLVM-22.so`.
fn llvm_major_of_file(bytes: &[u8]) -> Option<u32> {
    ["libLLVM.so.", "libLLVM-"].iter().find_map(|name| {
        let at = bytes
            .windows(name.len())
            .position(|window| window == name.as_bytes())?;
        let digits: String = bytes[at + name.len()..]
            .iter()
            .take_while(|byte| byte.is_ascii_digit())
            .map(|&byte| char::from(byte))
            .collect();
        digits.parse().ok()
    })
}

fn system(os_release: &str) -> System {
    let field = |name: &str| {
        os_release
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
            .unwrap_or_default()
            .trim_matches('"')
    };
    match (field("ID"), field("VERSION_ID")) {
        ("debian", "12") => System::Debian12,
        ("debian" | "ubuntu", _) => System::Debian,
        _ if field("ID_LIKE").split(' ').any(|like| like == "debian") => System::Debian,
        _ => System::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distribution_is_read_from_os_release() {
        assert_eq!(system("ID=debian\nVERSION_ID=\"12\"\n"), System::Debian12);
        assert_eq!(system("ID=debian\nVERSION_ID=\"13\"\n"), System::Debian);
        assert_eq!(system("ID=mint\nID_LIKE=\"ubuntu debian\""), System::Debian);
        assert_eq!(system("ID=fedora\nVERSION_ID=42"), System::Other);
        assert_eq!(system(""), System::Other);
    }

    #[test]
    fn the_llvm_of_rustc_is_read_from_its_version() {
        let text = "rustc 1.96.0\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
        assert_eq!(llvm_major_of_rustc(text), Some(22));
        assert_eq!(llvm_major_of_rustc("rustc 1.96.0"), None);
    }

    #[test]
    fn the_llvm_of_the_linker_is_read_from_the_file() {
        assert_eq!(llvm_major_of_file(b"\0libLLVM.so.22.1\0libc"), Some(22));
        assert_eq!(llvm_major_of_file(b"\0libLLVM-21.so.1\0"), Some(21));
        assert_eq!(llvm_major_of_file(b"\x7fELF, all static"), None);
    }
}
