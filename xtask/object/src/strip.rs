//! Leaves out of an object what is for debuggers alone: a fifth of it is left. The types and lines
//! of BTF stay, which the kernel's verifier reads.

use anyhow::{Context as _, Result};
use object::build::elf::{Builder, SectionData};
use object::elf::SHT_STRTAB;

/// Returns the object without its debug sections and their relocations.
pub(crate) fn debug_sections(object: &[u8]) -> Result<Vec<u8>> {
    let mut builder = Builder::read(object).context("the object is no ELF file")?;
    for section in &mut builder.sections {
        let name = section.name.as_slice();
        if name.starts_with(b".debug_") || name.starts_with(b".rel.debug_") {
            section.delete = true;
        }
    }
    builder.delete_orphans();
    // LLVM keeps the names of sections among those of symbols, which this writer cannot.
    let names = builder.sections.add();
    names.name = ".shstrtab".into();
    names.sh_type = SHT_STRTAB;
    names.data = SectionData::SectionString;
    names.sh_addralign = 1;
    let mut stripped = Vec::new();
    builder
        .write(&mut stripped)
        .context("the object cannot be written")?;
    Ok(stripped)
}
