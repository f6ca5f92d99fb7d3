//! The unit that switches the tracker on at each start of the machine: `track on --at-boot` writes
//! it, `track off` takes it away. systemd alone; elsewhere this says so and changes nothing.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail, ensure};

use crate::sys::text;

/// Is there while systemd is the host's init.
const RUNNING: &str = "/run/systemd/system";

/// Where an administrator's units are.
const UNITS: &str = "/etc/systemd/system";

/// Name of the unit.
const UNIT: &str = "lifemon-tracker.service";

/// What starts it: early, before the services that start processes worth knowing.
const WANTED_BY: &str = "basic.target";

/// The first line of a unit that lifemon has written, and may replace and remove.
const MARK: &str = "# Written by `lifemon track on --at-boot`; `lifemon track off` removes it.";

/// Checks that this binary can be started by systemd, and returns its path.
///
/// # Errors
/// Where there is no systemd, or others than root could put another program in the binary's place.
pub(super) fn check() -> anyhow::Result<PathBuf> {
    ensure!(
        Path::new(RUNNING).is_dir(),
        "systemd does not run here, so there is nothing to write a unit for: call `lifemon track \
         on` from what starts this machine; nothing was changed"
    );
    let unit = unit();
    if let Some(text) = read(&unit)? {
        ensure!(
            text.starts_with(MARK),
            "{} is not lifemon's: remove it, and try again; nothing was changed",
            unit.display()
        );
    }
    let binary = std::env::current_exe().context("the path of this binary is not known")?;
    for part in binary.ancestors() {
        let metadata = fs::metadata(part)
            .with_context(|| format!("{} cannot be looked at", part.display()))?;
        let is_roots = metadata.uid() == 0 && metadata.mode() & 0o022 == 0;
        ensure!(
            is_roots,
            "{} can be changed by others than root, and each start of the machine would run what \
             is there as root: install lifemon in /usr/local/bin, and call that; nothing was \
             changed",
            part.display()
        );
    }
    let name = binary.to_string_lossy();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._+-".contains(c);
    ensure!(
        name.chars().all(is_plain),
        "systemd would read {name} in another way: install lifemon under a plain name; nothing was \
         changed"
    );
    Ok(binary)
}

/// Writes the unit and enables it, and returns its path.
///
/// # Errors
/// When it cannot be written.
pub(super) fn write(binary: &Path, max_processes: u32) -> anyhow::Result<PathBuf> {
    let text = format!(
        "{MARK}\n\
         [Unit]\n\
         Description=lifemon's tracker, which keeps the lineage of every process\n\
         Documentation=man:lifemon(1)\n\
         DefaultDependencies=no\n\
         After=local-fs.target\n\
         Before={WANTED_BY}\n\
         \n\
         [Service]\n\
         Type=oneshot\n\
         ExecStart={} track on --max-processes {max_processes}\n\
         \n\
         [Install]\n\
         WantedBy={WANTED_BY}\n",
        binary.display()
    );
    let unit = unit();
    // At once complete: systemd may read it at any time.
    let new = Path::new(UNITS).join(format!(".{UNIT}.new"));
    let write = || -> io::Result<()> {
        fs::create_dir_all(UNITS)?;
        fs::write(&new, text)?;
        fs::rename(&new, &unit)?;
        let link = link();
        fs::create_dir_all(link.parent().unwrap_or(&link))?;
        ignore(fs::remove_file(&link), ErrorKind::NotFound)?;
        symlink(&unit, &link)
    };
    write().with_context(|| {
        let unit = unit.display();
        format!(
            "tracking is on, but not from the next start of the machine on: cannot write {unit}"
        )
    })?;
    reload();
    Ok(unit)
}

/// Takes the unit away, and returns its path if it was there. One that lifemon has not written
/// stays.
///
/// # Errors
/// When it cannot be removed.
pub(super) fn remove() -> anyhow::Result<Option<PathBuf>> {
    let unit = unit();
    match read(&unit)? {
        Some(text) if text.starts_with(MARK) => {}
        _ => return Ok(None),
    }
    for file in [link(), unit.clone()] {
        if let Err(error) = ignore(fs::remove_file(&file), ErrorKind::NotFound) {
            bail!(
                "tracking is off, but the next start of the machine switches it on: cannot remove \
                 {}: {error}",
                file.display()
            );
        }
    }
    reload();
    Ok(Some(unit))
}

fn unit() -> PathBuf {
    Path::new(UNITS).join(UNIT)
}

fn link() -> PathBuf {
    Path::new(UNITS)
        .join(format!("{WANTED_BY}.wants"))
        .join(UNIT)
}

fn read(unit: &Path) -> anyhow::Result<Option<String>> {
    match text::read(unit) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", unit.display())),
    }
}

fn ignore(result: io::Result<()>, kind: ErrorKind) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == kind => Ok(()),
        other => other,
    }
}

/// Lets systemd read its units again. It does so at each start of the machine in any case, so a
/// failure changes nothing.
fn reload() {
    let mut systemctl = Command::new("systemctl");
    systemctl.arg("daemon-reload").stdin(Stdio::null());
    let _ = systemctl
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
}
