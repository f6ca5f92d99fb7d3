//! The image for containers: the binary, and of glibc what it loads. An OCI layout for both
//! processors, as a directory and as one file.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::VERSION;
use crate::archive::Tar;
use crate::plan::Plan;
use crate::processor::Processor;
use crate::stage::gzip;
use crate::sums::sha256;

/// What the binary loads, besides the loader.
const LIBRARIES: [&str; 3] = ["libc.so.6", "libdl.so.2", "libpthread.so.0"];

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Writes the layout, and returns the file with all of it.
pub(crate) fn write(processors: &[Processor]) -> Result<PathBuf> {
    let mut layout = Layout::default();
    let mut manifests = Vec::new();
    for &processor in processors {
        manifests.push(layout.image(processor)?);
    }
    let images = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests });
    let mut entry = layout.json(INDEX, &images)?;
    entry["annotations"] = json!({ "org.opencontainers.image.ref.name": VERSION });
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry] });
    layout.add("index.json", serde_json::to_vec(&index)?);
    let version = json!({ "imageLayoutVersion": "1.0.0" });
    layout.add("oci-layout", serde_json::to_vec(&version)?);
    layout.write()
}

/// The files of the layout.
#[derive(Default)]
struct Layout {
    files: Vec<(PathBuf, Vec<u8>)>,
}

impl Layout {
    /// Adds the image for a processor, and returns what refers to it.
    fn image(&mut self, processor: Processor) -> Result<Value> {
        let tar = root(processor)?;
        let config = json!({
            "architecture": processor.debian(),
            "os": "linux",
            "config": {
                "Entrypoint": ["/usr/bin/lifemon"],
                "Labels": {
                    "org.opencontainers.image.title": "lifemon",
                    "org.opencontainers.image.version": VERSION,
                    "org.opencontainers.image.licenses": "MIT OR Apache-2.0",
                },
            },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", sha256(&tar))] },
        });
        let config = self.json(CONFIG, &config)?;
        let layer = self.blob(LAYER, gzip(&tar)?);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config,
            "layers": [layer],
        });
        let mut entry = self.json(MANIFEST, &manifest)?;
        entry["platform"] = json!({ "architecture": processor.debian(), "os": "linux" });
        Ok(entry)
    }

    fn json(&mut self, media_type: &str, value: &Value) -> Result<Value> {
        Ok(self.blob(media_type, serde_json::to_vec(value)?))
    }

    /// Adds a file under the name of its checksum, and returns what refers to it.
    fn blob(&mut self, media_type: &str, contents: Vec<u8>) -> Value {
        let sum = sha256(&contents);
        let size = contents.len();
        self.add(&format!("blobs/sha256/{sum}"), contents);
        json!({ "mediaType": media_type, "digest": format!("sha256:{sum}"), "size": size })
    }

    fn add(&mut self, name: &str, contents: Vec<u8>) {
        self.files.push((name.into(), contents));
    }

    fn write(self) -> Result<PathBuf> {
        let directory = Plan::Whole.artefact("oci");
        fs::create_dir_all(directory.join("blobs/sha256"))?;
        let mut tar = Tar::default();
        for (name, contents) in &self.files {
            fs::write(directory.join(name), contents)?;
            tar.bytes(name, contents, 0o644)?;
        }
        let file = Plan::Whole.artefact(&format!("lifemon-{VERSION}.oci.tar"));
        fs::write(&file, tar.finish()?)?;
        Ok(file)
    }
}

/// Returns the files of an image.
fn root(processor: Processor) -> Result<Vec<u8>> {
    let (loader, directory) = match processor {
        Processor::X86_64 => ("lib64/ld-linux-x86-64.so.2", "lib/x86_64-linux-gnu"),
        Processor::Arm64 => ("lib/ld-linux-aarch64.so.1", "lib/aarch64-linux-gnu"),
    };
    let mut tar = Tar::default();
    for mounted in ["proc", "sys", "run", "tmp"] {
        tar.directory(Path::new(mounted))?;
    }
    let loader = Path::new(loader);
    let name = loader.file_name().context("a loader is a file")?;
    tar.file(loader, &library(processor, Path::new(name))?, 0o755)?;
    for name in LIBRARIES {
        let here = library(processor, Path::new(name))?;
        tar.file(&Path::new(directory).join(name), &here, 0o644)?;
    }
    tar.file(
        Path::new("usr/bin/lifemon"),
        &Plan::Whole.binary(processor),
        0o755,
    )?;
    for license in ["LICENSE-MIT", "LICENSE-APACHE"] {
        let inside = Path::new("usr/share/licenses/lifemon").join(license);
        tar.file(&inside, Path::new(license), 0o644)?;
    }
    tar.finish()
}

/// Returns where a library of glibc is on this machine.
fn library(processor: Processor, name: &Path) -> Result<PathBuf> {
    let triple = format!("{}-linux-gnu", processor.rust());
    let places = [
        Path::new("/lib").join(&triple),
        Path::new("/usr").join(&triple).join("lib"),
    ];
    let mut files = places.iter().map(|place| place.join(name));
    files.find(|file| file.exists()).with_context(|| {
        let debian = processor.debian();
        format!(
            "no {} of {debian}: install libc6 or, for the other processor, libc6-{debian}-cross",
            name.display()
        )
    })
}
