//! Checks that every program fits into the stack that the kernel gives it: 512 bytes for all
//! functions that call each other, and each takes a multiple of 32. Newer kernels round less, and
//! give some programs more, so that what is too much is refused by the older ones alone. In the
//! kernel it is `check_max_stack_depth` in `kernel/bpf/verifier.c`.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use object::LittleEndian;
use object::read::elf::ElfFile64;
use object::read::{
    Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SymbolKind,
};

const STACK_BYTES: u64 = 512;
const ROUNDED_TO: u64 = 32;
const INSTRUCTION_BYTES: u64 = 8;
/// The register that points to the end of a function's part of the stack.
const FRAME: u8 = 10;

/// Where a function begins: the number of its section, and the distance from the beginning of that.
type Place = (usize, u64);

#[derive(Debug)]
struct Function {
    name: String,
    /// Bytes of the stack that it uses itself.
    frame: u64,
    calls: Vec<Place>,
}

/// Fails if a program does not fit.
pub(crate) fn check(object: &[u8]) -> Result<()> {
    let functions = functions(object)?;
    ensure!(!functions.is_empty(), "the object has no functions");
    for (place, function) in &functions {
        let bytes = depth(&functions, *place, &mut Vec::new())?;
        ensure!(
            bytes <= STACK_BYTES,
            "{} and what it calls take {bytes} bytes of stack; kernels give {STACK_BYTES}",
            function.name
        );
    }
    Ok(())
}

/// Returns how much of the stack a function and what it calls take.
fn depth(functions: &BTreeMap<Place, Function>, of: Place, above: &mut Vec<Place>) -> Result<u64> {
    let function = functions.get(&of);
    let function = function.with_context(|| format!("a call to {of:?}, where no function is"))?;
    ensure!(!above.contains(&of), "{} calls itself", function.name);
    above.push(of);
    let calls = function.calls.iter();
    let calls = calls.map(|call| depth(functions, *call, above));
    let deepest = calls.collect::<Result<Vec<_>>>()?.into_iter().max();
    above.pop();
    let own = function.frame.max(1).next_multiple_of(ROUNDED_TO);
    Ok(own + deepest.unwrap_or_default())
}

fn functions(object: &[u8]) -> Result<BTreeMap<Place, Function>> {
    let file = ElfFile64::<LittleEndian>::parse(object).context("the object is no ELF file")?;
    let mut functions = BTreeMap::new();
    for symbol in file
        .symbols()
        .filter(|symbol| symbol.kind() == SymbolKind::Text)
    {
        let Some(index) = symbol.section_index() else {
            continue;
        };
        let section = file.section_by_index(index)?;
        let (begin, end) = (symbol.address(), symbol.address() + symbol.size());
        let code = section.data()?.get(begin as usize..end as usize);
        let code = code.context("a function outside of its section")?;
        let mut calls = Vec::new();
        for at in calls_in(code) {
            let (offset, jump) = (begin + at.0, at.1);
            let mut relocations = section.relocations();
            let target = relocations.find(|(place, _)| *place == offset);
            // In instructions from the one behind the call, or behind the beginning of the symbol.
            let (to, base) = match target.map(|(_, relocation)| relocation.target()) {
                Some(RelocationTarget::Symbol(symbol)) => {
                    let symbol = file.symbol_by_index(symbol)?;
                    let section = symbol.section_index().context("a call to nowhere")?;
                    (section.0, symbol.address())
                }
                _ => (index.0, offset),
            };
            let bytes = (i64::from(jump) + 1) * INSTRUCTION_BYTES.cast_signed();
            calls.push((to, base.wrapping_add_signed(bytes)));
        }
        let name = symbol.name()?.to_owned();
        let frame = frame(code);
        functions.insert((index.0, begin), Function { name, frame, calls });
    }
    Ok(functions)
}

/// One instruction, as Documentation/bpf/standardization/instruction-set.rst has it.
#[derive(Clone, Copy)]
struct Instruction {
    opcode: u8,
    to: u8,
    from: u8,
    offset: i16,
    immediate: i32,
}

impl Instruction {
    const CALL: u8 = 0x85;
    const MOVE: u8 = 0xbf;
    const ADD_IMMEDIATE: u8 = 0x07;
    /// `from` of a call to a function of the object.
    const LOCAL: u8 = 1;

    fn read(bytes: [u8; 8]) -> Self {
        let [opcode, registers, o0, o1, i0, i1, i2, i3] = bytes;
        Self {
            opcode,
            to: registers & 0xf,
            from: registers >> 4,
            offset: i16::from_le_bytes([o0, o1]),
            immediate: i32::from_le_bytes([i0, i1, i2, i3]),
        }
    }

    /// Returns the register of the address, where it reads or writes memory.
    fn address(self) -> Option<u8> {
        match self.opcode & 7 {
            1 => Some(self.from),
            2 | 3 => Some(self.to),
            _ => None,
        }
    }

    /// Returns whether it changes a register.
    fn sets(self, register: u8) -> bool {
        matches!(self.opcode & 7, 0 | 1 | 4 | 7) && self.to == register
    }
}

/// Returns the instructions, each with the distance from the beginning.
fn instructions(code: &[u8]) -> impl Iterator<Item = (u64, Instruction)> {
    let (words, _) = code.as_chunks::<8>();
    let at = (0..).step_by(8);
    at.zip(words.iter().copied().map(Instruction::read))
}

fn calls_in(code: &[u8]) -> impl Iterator<Item = (u64, i32)> {
    instructions(code)
        .filter(|(_, one)| one.opcode == Instruction::CALL && one.from == Instruction::LOCAL)
        .map(|(at, one)| (at, one.immediate))
}

/// Returns how far below the end of its stack a function reaches: by addresses relative to the
/// frame register, and by copies of it from which something is subtracted.
fn frame(code: &[u8]) -> u64 {
    let mut copies = [false; 16];
    let mut deepest = 0_i64;
    for (_, one) in instructions(code) {
        let offset = if one.address() == Some(FRAME) {
            one.offset.into()
        } else if one.opcode == Instruction::ADD_IMMEDIATE && copies[usize::from(one.to)] {
            one.immediate.into()
        } else {
            0
        };
        deepest = deepest.min(offset);
        if one.sets(one.to) {
            copies[usize::from(one.to)] = one.opcode == Instruction::MOVE && one.from == FRAME;
        }
    }
    deepest.unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(instructions: &[u64]) -> Vec<u8> {
        let words = instructions.iter().map(|one| one.to_be_bytes());
        words.flatten().collect()
    }

    #[test]
    fn what_a_function_uses_is_what_it_reaches() {
        // r2 = r10; r2 += -104; *(u64 *)(r10 - 16) = r1; r1 = *(u32 *)(r10 - 120)
        let used = code(&[
            0xbfa2_0000_0000_0000,
            0x0702_0000_98ff_ffff,
            0x7b1a_f0ff_0000_0000,
        ]);
        assert_eq!(frame(&used), 104);
        let read = code(&[0x61a1_88ff_0000_0000]);
        assert_eq!(frame(&read), 120);
        // r2 = r10; r2 = r1; r2 += -104; *(u64 *)(r2 - 16) = r1
        let other = code(&[
            0xbfa2_0000_0000_0000,
            0xbf12_0000_0000_0000,
            0x0702_0000_98ff_ffff,
            0x7b12_f0ff_0000_0000,
        ]);
        assert_eq!(frame(&other), 0);
    }

    #[test]
    fn calls_add_up_and_end() {
        let place = |at| (1, at);
        let function = |name: &str, frame, calls: &[u64]| Function {
            name: name.to_owned(),
            frame,
            calls: calls.iter().map(|at| place(*at)).collect(),
        };
        let functions = BTreeMap::from([
            (place(0), function("exit", 264, &[8, 16])),
            (place(8), function("bury", 288, &[])),
            (place(16), function("record", 0, &[8])),
            (place(24), function("again", 8, &[24])),
        ]);
        let depth = |at| depth(&functions, place(at), &mut Vec::new());
        assert_eq!(depth(0).unwrap(), 288 + 32 + 288);
        assert_eq!(depth(8).unwrap(), 288);
        assert!(depth(24).is_err());
    }

    #[test]
    fn the_committed_object_fits() {
        let object = include_bytes!("../../../monitor/ebpf/lifemon-ebpf.o");
        check(object).unwrap();
        let functions = functions(object).unwrap();
        let exit = functions.iter().find(|(_, one)| one.name == "exit");
        let (place, exit) = exit.unwrap();
        let bytes = depth(&functions, *place, &mut Vec::new()).unwrap();
        assert!(bytes > 300 && exit.calls.len() > 3, "{bytes} {exit:?}");
    }
}
