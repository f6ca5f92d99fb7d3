//! Tries the artefacts: each is installed into a system that has nothing of it, where doctor and
//! attach run. What is for another processor is not run: it is as large as its like, and no more is
//! known.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::VERSION;
use crate::archive;
use crate::plan::{Plan, here};
use crate::root::{Root, said};
use crate::tools::run_said;
use crate::wheel;
use lifemon_tools::command::run;
use lifemon_tools::packages;
use lifemon_tools::privilege::as_root;
use lifemon_tools::toolchain::on_path;

/// Programs that the check needs, with their packages.
const NEEDED: [(&str, &str); 4] = [
    ("debootstrap", "debootstrap"),
    ("lintian", "lintian"),
    ("rpm", "rpm"),
    ("skopeo", "skopeo"),
];

/// The system that each is installed into. It stays for the next check.
const BASE: &str = "target/dist-check/debian-12";

/// Where it is installed: anew for each.
const TRIED: &str = "target/dist-check/tried";

/// Tries the archive and the wheel on this system: in a directory and in an environment of Python
/// of their own.
pub(crate) fn quick() -> Result<()> {
    let plan = Plan::Quick;
    let processor = here()?;
    let tried = plan.artefact("tried");
    fs::create_dir(&tried)?;
    let archive = plan.artefact(&format!("{}.tar.gz", archive::name(processor)));
    unpack(&archive, &tried)?;
    let binary = tried.join(archive::name(processor)).join("bin/lifemon");
    Root(None).try_lifemon(&[text(&fs::canonicalize(binary)?)?])?;

    let environment = tried.join("python");
    let mut venv = Command::new("python3");
    venv.args(["-m", "venv"]).arg(&environment);
    run(venv)?;
    let python = std::env::current_dir()?
        .join(environment)
        .join("bin/python");
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--no-index"]);
    pip.arg(wheel::find(plan, processor)?);
    run(pip)?;
    Root(None).try_lifemon(&[text(&python)?, "-m", "lifemon"])?;
    module(&python)?;
    without_binary(&python)?;
    fs::remove_dir_all(tried)?;
    Ok(())
}

/// A server in Python that uses the module, and the binary beside it.
const SERVER: &str = "
import multiprocessing, time, lifemon
from lifemon.process_cleanup import ProcessManager
worker = multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,))
worker.start()
manager = ProcessManager([worker], [])
assert manager.way in ('agent', 'helper', 'helper-snapshots'), manager.way
worker.kill()
worker.join()
assert manager.get_health_status()['dead_workers'] == [0]
assert lifemon.run(['true']).returncode == 0
";

/// Tries Python's module as it was installed.
fn module(python: &Path) -> Result<()> {
    let mut server = Command::new(python);
    server.args(["-c", SERVER]);
    for variable in ["LIFEMON_BIN", "LIFEMON_WAY", "PYTHONPATH"] {
        server.env_remove(variable);
    }
    run(server)
}

/// Checks that Python's module says in one line what to do where the binary is missing.
fn without_binary(python: &Path) -> Result<()> {
    fs::remove_file(python.with_file_name("lifemon"))?;
    let mut module = Command::new(python);
    let ended = module.args(["-m", "lifemon", "doctor"]).output()?;
    let said = String::from_utf8_lossy(&ended.stderr);
    ensure!(
        ended.status.code() == Some(1)
            && said.lines().count() == 1
            && said.contains("pip install --force-reinstall lifemon"),
        "without its binary, the module says: {said}"
    );
    Ok(())
}

/// Tries all that is in target/dist for this processor.
pub(crate) fn whole() -> Result<()> {
    let directory = Plan::Whole.directory();
    let made = directory.join("SHA256SUMS");
    ensure!(
        made.exists(),
        "nothing to check in {}: run `cargo xtask dist` first",
        directory.display()
    );
    set_up()?;
    sums()?;
    tarball()?;
    deb()?;
    rpm()?;
    of_python()?;
    image()?;
    remove(Path::new(TRIED))
}

fn set_up() -> Result<()> {
    let missing = NEEDED
        .iter()
        .filter(|(program, _)| on_path(program).is_none());
    let missing: Vec<&str> = missing.map(|(_, package)| *package).collect();
    if !missing.is_empty() {
        run_said(packages::update()?)?;
        run_said(packages::install(&missing)?)?;
    }
    if Path::new(BASE).exists() {
        return Ok(());
    }
    let unfinished = Path::new("target/dist-check/unfinished");
    remove(unfinished)?;
    fs::create_dir_all("target/dist-check")?;
    let mut debootstrap = as_root(Path::new("debootstrap"), &[])?;
    debootstrap.args(["--variant=minbase", "--include=python3-venv", "bookworm"]);
    debootstrap.arg(unfinished);
    // The mirror that this system uses.
    debootstrap.args(mirror());
    run_said(debootstrap)?;
    let mut done = as_root(Path::new("mv"), &[])?;
    done.arg(unfinished).arg(BASE);
    run(done)
}

/// Returns the first source of packages of this system, if it is easily found.
fn mirror() -> Option<String> {
    let list = said(
        "apt-get",
        &["indextargets", "--format", "$(SITE) $(CODENAME)"],
    )
    .ok()?;
    let of_debian_12 = |line: &str| {
        let (site, codename) = line.split_once(' ')?;
        (codename == "bookworm").then(|| site.to_owned())
    };
    list.lines().find_map(of_debian_12)
}

/// Makes an empty system, and returns it.
fn fresh() -> Result<PathBuf> {
    let tried = Path::new(TRIED);
    remove(tried)?;
    let mut copy = as_root(Path::new("cp"), &[])?;
    copy.args(["-a", "--reflink=auto", BASE]).arg(tried);
    run(copy)?;
    Ok(fs::canonicalize(tried)?)
}

fn remove(directory: &Path) -> Result<()> {
    // One file system alone: nothing of the host that would still be mounted there.
    let mut remove = as_root(Path::new("rm"), &[])?;
    remove.args(["-rf", "--one-file-system"]).arg(directory);
    run(remove)
}

fn copy(file: &Path, directory: &Path) -> Result<()> {
    let mut copy = as_root(Path::new("cp"), &[])?;
    copy.arg(file).arg(directory);
    run(copy)
}

fn unpack(archive: &Path, directory: &Path) -> Result<()> {
    let mut tar = as_root(Path::new("tar"), &[])?;
    tar.arg("-xf").arg(archive).arg("-C").arg(directory);
    run(tar)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str()
        .context("the path of this checkout is no text")
}

fn sums() -> Result<()> {
    let mut sums = Command::new("sha256sum");
    sums.args(["--check", "--quiet", "SHA256SUMS"]);
    run_said({
        sums.current_dir(Plan::Whole.directory());
        sums
    })
}

fn tarball() -> Result<()> {
    let name = archive::name(here()?);
    let tried = fresh()?;
    unpack(
        &Plan::Whole.artefact(&format!("{name}.tar.gz")),
        &tried.join("opt"),
    )?;
    Root(Some(&tried)).try_lifemon(&[&format!("/opt/{name}/bin/lifemon")])
}

/// Installs, tries, removes and purges: a tracker stays until the purge.
fn deb() -> Result<()> {
    let name = format!("lifemon_{VERSION}-1_{}.deb", here()?.debian());
    let file = Plan::Whole.artefact(&name);
    let mut lintian = Command::new("lintian");
    lintian.args(["--fail-on", "error"]).arg(&file);
    run_said(lintian)?;
    let tried = fresh()?;
    copy(&file, &tried.join("root"))?;
    let root = Root(Some(&tried));
    root.run("dpkg", &["--install", &format!("/root/{name}")])?;
    root.try_lifemon(&["/usr/bin/lifemon"])?;
    // In one namespace: the file system with the pins is of that alone.
    let said = root.run(
        "sh",
        &[
            "-ec",
            "lifemon track on; dpkg --remove lifemon; test -d /sys/fs/bpf/lifemon
             dpkg --purge lifemon; ! test -e /sys/fs/bpf/lifemon; ! test -e /usr/bin/lifemon",
        ],
    )?;
    ensure!(
        said.contains("the tracker stays on"),
        "the removal does not say that the tracker stays:\n{said}"
    );
    Ok(())
}

fn rpm() -> Result<()> {
    let name = format!("lifemon-{VERSION}-1.{}.rpm", here()?.rust());
    let tried = fresh()?;
    let mut install = as_root(Path::new("rpm"), &[])?;
    // Its requirements are other names of what Debian has.
    install
        .args(["--install", "--nodeps", "--root"])
        .arg(&tried);
    install.arg(Plan::Whole.artefact(&name));
    run_said(install)?;
    Root(Some(&tried)).try_lifemon(&["/usr/bin/lifemon"])
}

fn of_python() -> Result<()> {
    let wheel = wheel::find(Plan::Whole, here()?)?;
    let tried = fresh()?;
    copy(&wheel, &tried.join("root"))?;
    let name = wheel.file_name().and_then(|name| name.to_str());
    let inside = format!("/root/{}", name.context("a wheel has a name")?);
    let root = Root(Some(&tried));
    root.run("python3", &["-m", "venv", "/opt/python"])?;
    let pip = ["-m", "pip", "install", "--quiet", "--no-index", &inside];
    root.run("/opt/python/bin/python", &pip)?;
    root.try_lifemon(&["/opt/python/bin/lifemon"])?;
    root.try_lifemon(&["/opt/python/bin/python", "-m", "lifemon"])
}

/// Asks skopeo whether the layout is one, and runs what is in its layer.
fn image() -> Result<()> {
    let layout = Plan::Whole.artefact("oci");
    let name = format!("oci:{}:{VERSION}", layout.display());
    let said = said("skopeo", &["inspect", &name])?;
    let image: serde_json::Value = serde_json::from_str(&said)?;
    ensure!(image["Os"] == "linux", "skopeo reads another image: {said}");
    let digest = image["Layers"][0]
        .as_str()
        .context("the image has a layer")?;
    let blob = digest.replacen(':', "/", 1);
    let tried = Path::new(TRIED);
    remove(tried)?;
    fs::create_dir_all(tried)?;
    unpack(&layout.join("blobs").join(blob), tried)?;
    Root(Some(&fs::canonicalize(tried)?)).try_lifemon(&["/usr/bin/lifemon"])
}
