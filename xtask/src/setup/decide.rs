//! From what a machine has to what must be installed on it. Pure: every kind of machine is a test
//! here, also those nobody has at hand.

use anyhow::{Result, bail, ensure};

use super::facts::{Facts, Rust, System};
use lifemon_tools::privilege::Privilege;
use lifemon_tools::toolchain::{LINKED, OVERRIDE_ENV, Toolchain};

/// The LLVM of Debian 12's rustc-web.
const DEBIAN_12_LLVM: u32 = 22;

/// Those that bpf-linker can be built for.
const LINKER_LLVMS: std::ops::RangeInclusive<u32> = 21..=23;

/// One thing to say or to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It is there.
    Have(String),
    /// `apt-get update`.
    UpdatePackageLists,
    /// `apt-get install` of these.
    InstallPackages(Vec<String>),
    /// `cargo install bpf-linker`.
    InstallLinker {
        /// The LLVM to link with: that of the toolchain.
        llvm_major: u32,
        /// Where it is.
        prefix: Option<String>,
    },
    /// `rustup toolchain link`.
    LinkToolchain,
    /// `rustup component add` of these.
    AddComponents(Vec<&'static str>),
}

/// Returns the steps in order, or what the user has to do where we cannot.
pub(super) fn decide(facts: &Facts) -> Result<Vec<Step>> {
    ensure!(
        facts.rust != Rust::NoRustup,
        "rustup is not on PATH: install it, and open a new shell"
    );
    ensure!(
        facts.rust != Rust::ForeignRustc,
        "the rustc on PATH is not of the toolchain of this cargo: put rustup's bin directory \
         (.cargo/bin in your home) first on PATH"
    );
    let mut steps = vec![Step::Have("rustup's cargo and rustc".to_owned())];
    let mut packages = Vec::new();
    let llvm_major = toolchain(facts, &mut steps, &mut packages)?;
    let linker = linker(facts, llvm_major, &mut packages)?;
    install_packages(facts, packages, &mut steps)?;
    steps.push(linker);
    if usable(facts).is_none() {
        steps.push(Step::LinkToolchain);
    }
    steps.push(components(facts));
    Ok(steps)
}

/// Returns the toolchain that is there, if it will do. On Debian 12 it is the distribution's,
/// unless the user wants another: there everybody makes the same bytes of the kernel half.
fn usable(facts: &Facts) -> Option<&(Toolchain, Option<u32>)> {
    let is_free = facts.system != System::Debian12 || facts.overridden.is_some();
    let toolchain = facts.toolchain.as_ref();
    toolchain.filter(|(toolchain, _)| is_free || toolchain.name == LINKED)
}

/// Decides on the toolchain of the kernel half; returns the LLVM the linker must not be older than.
fn toolchain(
    facts: &Facts,
    steps: &mut Vec<Step>,
    packages: &mut Vec<String>,
) -> Result<Option<u32>> {
    if let Some((toolchain, llvm_major)) = usable(facts) {
        let llvm = llvm_major.map_or_else(String::new, |major| format!(", LLVM {major}"));
        let name = &toolchain.name;
        steps.push(Step::Have(format!("toolchain {name} with rust-src{llvm}")));
        return Ok(*llvm_major);
    }
    if let Some(name) = facts.overridden.as_deref().filter(|name| *name != LINKED) {
        bail!(
            "the toolchain {name} (from {OVERRIDE_ENV}) is not installed or has no rust-src: \
             run `rustup toolchain install {name} --component rust-src`, or unset {OVERRIDE_ENV}"
        );
    }
    ensure!(
        facts.system == System::Debian12,
        "no toolchain for the kernel half: run `rustup toolchain install nightly --component \
         rust-src` and `cargo install bpf-linker`, then this again"
    );
    packages.extend(["rustc-web", "rust-web-src"].map(str::to_owned));
    Ok(Some(DEBIAN_12_LLVM))
}

/// Decides on bpf-linker, of the toolchain's LLVM or a newer one.
fn linker(facts: &Facts, llvm_major: Option<u32>, packages: &mut Vec<String>) -> Result<Step> {
    match (facts.linker.map(|linker| linker.llvm_major), llvm_major) {
        (Some(Some(linked)), Some(needed)) if linked < needed => {}
        (Some(linked), _) => {
            let llvm = linked.map_or_else(String::new, |major| format!(", LLVM {major}"));
            return Ok(Step::Have(format!("bpf-linker{llvm}")));
        }
        (None, _) => {}
    }
    let remedy = "install it from its releases (see its README), or with `cargo install \
                  bpf-linker` and LLVM_PREFIX set to that LLVM";
    let Some(llvm_major) = llvm_major.filter(|major| LINKER_LLVMS.contains(major)) else {
        bail!("no bpf-linker for the LLVM of the toolchain: {remedy}");
    };
    let prefix = if facts.llvm_prefix.is_some() {
        facts.llvm_prefix.clone()
    } else if facts.system == System::Other
        || (facts.system == System::Debian12 && llvm_major > DEBIAN_12_LLVM)
    {
        bail!("no bpf-linker for LLVM {llvm_major}: {remedy}");
    } else {
        packages.extend([
            format!("llvm-{llvm_major}-dev"),
            format!("libpolly-{llvm_major}-dev"),
            "libzstd-dev".to_owned(),
            "zlib1g-dev".to_owned(),
        ]);
        Some(format!("/usr/lib/llvm-{llvm_major}"))
    };
    Ok(Step::InstallLinker { llvm_major, prefix })
}

/// Adds the steps for these packages; nothing is done for those that are there.
fn install_packages(facts: &Facts, wanted: Vec<String>, steps: &mut Vec<Step>) -> Result<()> {
    let (have, missing): (Vec<String>, Vec<String>) = wanted
        .into_iter()
        .partition(|package| facts.packages.contains(package));
    steps.extend(
        have.into_iter()
            .map(|package| Step::Have(format!("package {package}"))),
    );
    if missing.is_empty() {
        return Ok(());
    }
    ensure!(
        facts.privilege != Privilege::None,
        "packages are missing, and there is no sudo: as root, run `apt-get update && apt-get \
         install {}`, then this again",
        missing.join(" ")
    );
    steps.extend([Step::UpdatePackageLists, Step::InstallPackages(missing)]);
    Ok(())
}

fn components(facts: &Facts) -> Step {
    if facts.missing_components.is_empty() {
        Step::Have("rustfmt and clippy".to_owned())
    } else {
        Step::AddComponents(facts.missing_components.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::super::facts::Linker;
    use super::*;
    use std::collections::BTreeSet;

    /// Returns a machine with rustup and nothing else.
    fn bare(system: System) -> Facts {
        Facts {
            rust: Rust::Rustup,
            toolchain: None,
            overridden: None,
            linker: None,
            system,
            packages: BTreeSet::new(),
            llvm_prefix: None,
            privilege: Privilege::Root,
            missing_components: Vec::new(),
        }
    }

    fn with_toolchain(mut facts: Facts, name: &str, llvm_major: u32) -> Facts {
        let toolchain = Toolchain {
            name: name.to_owned(),
            sysroot: "/sysroot".into(),
        };
        facts.toolchain = Some((toolchain, Some(llvm_major)));
        facts
    }

    fn with_linker(mut facts: Facts, llvm_major: Option<u32>) -> Facts {
        facts.linker = Some(Linker { llvm_major });
        facts
    }

    fn with_packages(mut facts: Facts, packages: &[&str]) -> Facts {
        facts.packages = packages.iter().map(|&package| package.to_owned()).collect();
        facts
    }

    /// Returns the steps that change something.
    fn changes(facts: &Facts) -> Vec<Step> {
        let steps = decide(facts).expect("a way");
        let change = |step: &Step| !matches!(step, Step::Have(_));
        steps.into_iter().filter(change).collect()
    }

    fn remedy(facts: &Facts) -> String {
        decide(facts).expect_err("no way").to_string()
    }

    fn install(packages: &[&str]) -> Step {
        Step::InstallPackages(packages.iter().map(|&package| package.to_owned()).collect())
    }

    fn install_linker(llvm_major: u32) -> Step {
        let prefix = Some(format!("/usr/lib/llvm-{llvm_major}"));
        Step::InstallLinker { llvm_major, prefix }
    }

    #[test]
    fn a_bare_debian_12_gets_everything_in_order() {
        let all = [
            "rustc-web",
            "rust-web-src",
            "llvm-22-dev",
            "libpolly-22-dev",
            "libzstd-dev",
            "zlib1g-dev",
        ];
        let expected = [
            Step::UpdatePackageLists,
            install(&all),
            install_linker(22),
            Step::LinkToolchain,
        ];
        assert_eq!(changes(&bare(System::Debian12)), expected);
    }

    #[test]
    fn only_what_is_missing_is_installed() {
        let facts = with_linker(bare(System::Debian12), Some(22));
        let facts = with_packages(facts, &["rustc-web"]);
        let expected = [
            Step::UpdatePackageLists,
            install(&["rust-web-src"]),
            Step::LinkToolchain,
        ];
        assert_eq!(changes(&facts), expected);

        let facts = with_packages(facts, &["rustc-web", "rust-web-src"]);
        assert_eq!(changes(&facts), [Step::LinkToolchain]);
    }

    #[test]
    fn a_complete_machine_gets_nothing() {
        for (name, system) in [(LINKED, System::Debian12), ("nightly", System::Other)] {
            let facts = with_toolchain(with_linker(bare(system), Some(22)), name, 22);
            assert_eq!(changes(&facts), []);
        }
    }

    #[test]
    fn on_debian_12_a_nightly_is_not_taken_for_the_toolchain_of_the_record() {
        let facts = with_toolchain(bare(System::Debian12), "nightly", 22);
        assert_eq!(changes(&facts), changes(&bare(System::Debian12)));
    }

    #[test]
    fn a_linker_that_does_not_name_its_llvm_is_believed() {
        let facts = with_toolchain(with_linker(bare(System::Other), None), "nightly", 23);
        assert_eq!(changes(&facts), []);
    }

    #[test]
    fn nightly_needs_a_linker_of_its_llvm() {
        let facts = with_toolchain(bare(System::Debian), "nightly", 23);
        let packages = [
            "llvm-23-dev",
            "libpolly-23-dev",
            "libzstd-dev",
            "zlib1g-dev",
        ];
        let expected = [
            Step::UpdatePackageLists,
            install(&packages),
            install_linker(23),
        ];
        assert_eq!(changes(&facts), expected);
        let older = with_linker(facts, Some(22));
        assert_eq!(changes(&older), expected);
    }

    #[test]
    fn an_llvm_that_the_user_points_at_is_taken() {
        let mut facts = with_toolchain(bare(System::Other), "nightly", 22);
        facts.llvm_prefix = Some("/opt/llvm".to_owned());
        let expected = Step::InstallLinker {
            llvm_major: 22,
            prefix: facts.llvm_prefix.clone(),
        };
        assert_eq!(changes(&facts), [expected]);
    }

    #[test]
    fn what_cannot_be_installed_here_is_said() {
        let elsewhere = remedy(&bare(System::Other));
        assert!(elsewhere.contains("toolchain install nightly --component rust-src"));
        assert!(elsewhere.contains("cargo install bpf-linker"));

        let no_llvm = with_toolchain(bare(System::Other), "nightly", 22);
        assert!(remedy(&no_llvm).contains("LLVM_PREFIX"));
        let mut not_in_debian_12 = with_toolchain(bare(System::Debian12), "nightly", 23);
        not_in_debian_12.overridden = Some("nightly".to_owned());
        assert!(remedy(&not_in_debian_12).contains("LLVM 23"));
        let unknown = with_toolchain(bare(System::Debian), "nightly", 99);
        assert!(remedy(&unknown).contains("no bpf-linker"));
    }

    #[test]
    fn without_root_or_sudo_the_command_is_said() {
        let mut facts = bare(System::Debian12);
        facts.privilege = Privilege::None;
        assert!(remedy(&facts).contains("apt-get install rustc-web rust-web-src llvm-22-dev"));
        facts.privilege = Privilege::Sudo;
        assert_eq!(changes(&facts).len(), 4);
    }

    #[test]
    fn a_toolchain_asked_for_must_be_there() {
        let mut facts = bare(System::Debian12);
        facts.overridden = Some("nightly-2026-01-01".to_owned());
        assert!(remedy(&facts).contains("nightly-2026-01-01"));
        facts.overridden = Some(LINKED.to_owned());
        assert_eq!(changes(&facts).last(), Some(&Step::LinkToolchain));
    }

    #[test]
    fn a_foreign_rustc_in_front_is_refused() {
        let mut facts = bare(System::Debian12);
        facts.rust = Rust::ForeignRustc;
        assert!(remedy(&facts).contains("first on PATH"));
        facts.rust = Rust::NoRustup;
        assert!(remedy(&facts).contains("rustup is not on PATH"));
    }

    #[test]
    fn a_minimal_toolchain_gets_its_components() {
        let mut facts = with_toolchain(with_linker(bare(System::Other), None), "nightly", 22);
        facts.missing_components = vec!["rustfmt", "clippy"];
        let both = Step::AddComponents(vec!["rustfmt", "clippy"]);
        assert_eq!(changes(&facts), [both]);
    }
}
