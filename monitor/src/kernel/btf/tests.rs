//! The reader against blobs that are built here, broken in every way, and against the running
//! kernel's own.

use proptest::prelude::*;

use super::*;

const INT: u8 = 1;
const VOLATILE: u8 = 9;
const CONST: u8 = 10;
/// The kind flag, as it lies beside the kind.
const FLAG: u8 = 0x80;
const NAMES: &[&str] = &[
    "task", "task_t", "outer", "loop", "loop_t", "deep", "wide", "twin", "exit", "iter", "no",
];
const MEMBERS: &[&str] = &["pid", "live", "signal.live", "mark", "loop", "x", "no", ""];

/// Writes BTF; `add` and its shorthands return the id of the new type.
#[derive(Default)]
struct Builder {
    types: Vec<u8>,
    strings: Vec<u8>,
    next_id: u32,
}

impl Builder {
    fn new() -> Self {
        Self {
            strings: vec![0],
            next_id: 1,
            ..Self::default()
        }
    }

    fn name(&mut self, name: &str) -> u32 {
        if name.is_empty() {
            return 0;
        }
        let at = self.strings.len() as u32;
        self.strings.extend(name.bytes().chain([0]));
        at
    }

    fn add(&mut self, kind: u8, name: &str, info: u32, size_or_id: u32, extra: &[u32]) -> u32 {
        let name_off = self.name(name);
        let head = [name_off, u32::from(kind) << 24 | info, size_or_id];
        for number in head.iter().chain(extra) {
            self.types.extend(number.to_ne_bytes());
        }
        self.next_id += 1;
        self.next_id - 1
    }

    fn refer(&mut self, kind: u8, name: &str, id: u32) -> u32 {
        self.add(kind, name, 0, id, &[])
    }

    /// Builds a struct. Members are a name, a type id and an offset field as stored.
    fn record(&mut self, kind: u8, name: &str, bytes: u32, members: &[(&str, u32, u32)]) -> u32 {
        let mut extra = Vec::new();
        for (name, id, offset) in members {
            extra.extend([self.name(name), *id, *offset]);
        }
        self.add(kind, name, members.len() as u32, bytes, &extra)
    }

    fn structure(&mut self, name: &str, bytes: u32, members: &[(&str, u32, u32)]) -> u32 {
        self.record(STRUCT, name, bytes, members)
    }

    fn finish(&self) -> Vec<u8> {
        let lengths = [self.types.len() as u32, self.strings.len() as u32];
        let mut data = MAGIC.to_ne_bytes().to_vec();
        data.extend([VERSION, 0]);
        for number in [24, 0, lengths[0], lengths[0], lengths[1]] {
            data.extend(u32::to_ne_bytes(number));
        }
        [data, self.types.clone(), self.strings.clone()].concat()
    }
}

/// Builds a kernel in small: every kind of type once, and everything the questions can meet.
fn sample() -> Vec<u8> {
    let mut b = Builder::new();
    let int = b.add(INT, "int", 0, 4, &[32]);
    b.add(3, "", 0, 0, &[int, int, 3]);
    b.add(6, "colour", 2, 4, &[0, 0, 0, 1]);
    b.add(7, "task", 0, 0, &[]);
    b.add(14, "jiffies", 0, int, &[1]);
    b.add(15, ".data", 1, 8, &[5, 0, 8]);
    b.add(16, "float", 0, 4, &[]);
    b.add(17, "tag", 0, int, &[0]);
    b.add(19, "big", 1, 8, &[0, 1, 2]);
    let signal = b.structure("signal", 12, &[("count", int, 0), ("live", int, 64)]);
    let signal = b.refer(CONST, "", signal);
    let signal = b.refer(TYPE_TAG, "rcu", signal);
    let inner = b.structure("", 8, &[("pid", int, 0), ("tgid", int, 32)]);
    let inner = b.refer(VOLATILE, "", inner);
    let union = b.record(UNION, "", 8, &[("raw", int, 0), ("", inner, 0)]);
    let members = [
        ("state", int, 0),
        ("", union, 64),
        ("signal", signal, 128),
        ("mark", int, 224),
    ];
    let task = b.structure("task", 32, &members);
    b.refer(TYPEDEF, "task_t", task);
    let (low, high) = (0x0300_0020, 0x0500_0023);
    let members = [
        ("x", int, 0),
        ("low", int, low),
        ("high", int, high),
        ("y", int, 64),
    ];
    b.record(STRUCT | FLAG, "flagged", 12, &members);
    let proto = b.add(FUNC_PROTO, "", 3, 0, &[0, 2, 0, int, 0, int]);
    let pointer = b.refer(PTR, "", proto);
    b.refer(TYPEDEF, "btf_trace_exit", pointer);
    b.refer(TYPEDEF, "btf_trace_bare", proto);
    let func = b.add(FUNC, "iter", 1, proto, &[]);
    b.refer(TYPEDEF, "btf_trace_no_pointer", func);
    let pointer = b.refer(PTR, "", task);
    b.refer(TYPEDEF, "btf_trace_no_proto", pointer);
    b.record(UNION, "outer", 4, &[("x", int, 0)]);
    b.refer(TYPEDEF, "nothing", 0);
    b.finish()
}

fn offset(data: &[u8], structure: &str, member: &str) -> Result<Option<u32>, BtfError> {
    Btf::parse(data, &[structure])?.offset_of(structure, member)
}

/// Asks everything about every name. What matters to the callers is that it returns.
fn ask_everything(data: &[u8]) -> Result<(), BtfError> {
    let btf = Btf::parse(data, NAMES)?;
    for name in NAMES {
        for member in MEMBERS {
            let _ = btf.offset_of(name, member);
        }
        let _ = (btf.size_of(name), btf.tracepoint_args(name));
    }
    Ok(())
}

#[test]
fn finds_members_also_in_anonymous_structs_and_behind_typedefs() {
    let data = sample();
    assert_eq!(offset(&data, "task", "state"), Ok(Some(0)));
    assert_eq!(offset(&data, "task", "raw"), Ok(Some(8)));
    assert_eq!(offset(&data, "task", "pid"), Ok(Some(8)));
    assert_eq!(offset(&data, "task", "tgid"), Ok(Some(12)));
    assert_eq!(offset(&data, "task_t", "tgid"), Ok(Some(12)));
}

#[test]
fn follows_a_path_through_members_that_are_structs() {
    let data = sample();
    assert_eq!(offset(&data, "task", "signal"), Ok(Some(16)));
    assert_eq!(offset(&data, "task", "signal.live"), Ok(Some(24)));
    assert_eq!(offset(&data, "task", "signal.pid"), Ok(None));
    assert_eq!(offset(&data, "task", "pid.live"), Ok(None));
    assert_eq!(offset(&data, "task", "signal."), Ok(None));
}

#[test]
fn a_name_matches_as_a_whole() {
    let data = sample();
    for name in ["stat", "states", "", "live", "mark\0"] {
        assert_eq!(offset(&data, "task", name), Ok(None), "{name}");
    }
    assert_eq!(offset(&data, "tas", "pid"), Ok(None));
    assert_eq!(
        offset(&data, "", "pid"),
        Err(BtfError::NotWanted(String::new()))
    );
}

#[test]
fn a_bitfield_has_no_offset_but_its_neighbours_do() {
    let data = sample();
    assert_eq!(offset(&data, "flagged", "x"), Ok(Some(0)));
    assert_eq!(offset(&data, "flagged", "low"), Ok(None));
    assert_eq!(offset(&data, "flagged", "high"), Ok(None));
    assert_eq!(offset(&data, "flagged", "y"), Ok(Some(8)));
    let mut b = Builder::new();
    b.structure("old", 4, &[("inside_a_byte", 0, 3), ("far", 0, 16)]);
    assert_eq!(offset(&b.finish(), "old", "inside_a_byte"), Ok(None));
    assert_eq!(offset(&b.finish(), "old", "far"), Ok(Some(2)));
}

#[test]
fn without_the_kind_flag_an_offset_has_all_its_bits() {
    let mut b = Builder::new();
    b.structure("huge", u32::MAX, &[("far", 0, 0xffff_fff8)]);
    assert_eq!(offset(&b.finish(), "huge", "far"), Ok(Some(0x1fff_ffff)));
}

#[test]
fn answers_sizes_tracepoints_and_functions() {
    let data = sample();
    let names = [
        NAMES,
        &["bare", "no_pointer", "no_proto", "signal", "int", "nothing"],
    ]
    .concat();
    let btf = Btf::parse(&data, &names).unwrap();
    assert_eq!(btf.size_of("task"), Ok(Some(32)));
    assert_eq!(btf.size_of("task_t"), Ok(Some(32)));
    assert_eq!(btf.size_of("signal"), Ok(Some(12)));
    assert_eq!(btf.size_of("outer"), Ok(Some(4)));
    assert_eq!(btf.size_of("int"), Ok(None));
    assert_eq!(btf.size_of("nothing"), Ok(None));
    assert_eq!(btf.tracepoint_args("exit"), Ok(Some(2)));
    let prefixed = Btf::parse(&data, &["btf_trace_exit"]).unwrap();
    assert_eq!(prefixed.tracepoint_args("exit"), Ok(Some(2)));
    for name in ["bare", "no_pointer", "no_proto", "iter"] {
        assert_eq!(btf.tracepoint_args(name), Ok(None), "{name}");
    }
}

#[test]
fn a_name_that_was_not_looked_for_is_an_error_and_not_an_absence() {
    let data = sample();
    let btf = Btf::parse(&data, &["iter"]).unwrap();
    let refused = BtfError::NotWanted("task".into());
    assert_eq!(btf.offset_of("task", "pid"), Err(refused.clone()));
    assert_eq!(btf.size_of("task"), Err(refused.clone()));
    assert_eq!(btf.tracepoint_args("task"), Err(refused));
}

#[test]
fn of_namesakes_the_first_with_the_member_answers() {
    let mut b = Builder::new();
    let other = b.structure("", 2, &[("x", 0, 8)]);
    b.refer(TYPEDEF, "twin", other);
    b.structure("twin", 4, &[("pid", 0, 0)]);
    b.structure("twin", 8, &[("pid", 0, 32), ("live", 0, 16)]);
    let data = b.finish();
    assert_eq!(offset(&data, "twin", "pid"), Ok(Some(0)));
    assert_eq!(offset(&data, "twin", "live"), Ok(Some(2)));
    assert_eq!(offset(&data, "twin", "x"), Ok(Some(1)));
    assert_eq!(
        Btf::parse(&data, &["twin"]).unwrap().size_of("twin"),
        Ok(Some(4))
    );
}

#[test]
fn circles_end_in_an_error() {
    let mut b = Builder::new();
    b.structure("loop", 8, &[("", 1, 0)]);
    b.refer(TYPEDEF, "loop_t", 3);
    b.refer(CONST, "", 2);
    b.refer(TYPEDEF, "btf_trace_loop", 4);
    let data = b.finish();
    assert_eq!(offset(&data, "loop", "x"), Err(TOO_DEEP));
    assert_eq!(offset(&data, "loop_t", "x"), Err(TOO_DEEP));
    let btf = Btf::parse(&data, &["loop", "loop_t"]).unwrap();
    assert_eq!(btf.size_of("loop_t"), Err(TOO_DEEP));
    assert_eq!(btf.tracepoint_args("loop"), Err(TOO_DEEP));
}

#[test]
fn nesting_is_followed_to_its_limit_and_no_further() {
    let mut b = Builder::new();
    let mut id = b.structure("", 64, &[("x", 0, 8)]);
    for _ in 1..MAX_DEPTH {
        id = b.structure("", 64, &[("", id, 8)]);
    }
    let deepest = b.structure("deep", 64, &[("", id, 8)]);
    b.structure("deeper", 64, &[("", deepest, 8)]);
    let bytes = MAX_DEPTH as u32 + 1;
    assert_eq!(offset(&b.finish(), "deep", "x"), Ok(Some(bytes)));
    assert_eq!(offset(&b.finish(), "deeper", "x"), Err(TOO_DEEP));

    let mut id = deepest;
    for _ in 1..MAX_DEPTH {
        id = b.refer(CONST, "", id);
    }
    let longest = b.refer(TYPEDEF, "long", id);
    b.refer(TYPEDEF, "longer", longest);
    assert_eq!(offset(&b.finish(), "long", "x"), Ok(Some(bytes)));
    assert_eq!(offset(&b.finish(), "longer", "x"), Err(TOO_DEEP));
}

#[test]
fn structs_that_multiply_end_in_an_error() {
    let mut b = Builder::new();
    let mut id = b.structure("", 1, &[("x", 0, 0)]);
    for _ in 1..MAX_DEPTH {
        id = b.structure("", 1, &[("", id, 0); 8]);
    }
    b.structure("wide", 1, &[("", id, 0); 8]);
    let too_many = BtfError::Limit("members to search", MAX_MEMBERS);
    assert_eq!(offset(&b.finish(), "wide", "no"), Err(too_many));
}

#[test]
fn too_many_types_and_bytes_and_namesakes_are_refused() {
    let mut b = Builder::new();
    b.types = vec![0; MAX_TYPES * TYPE_BYTES];
    b.types
        .chunks_exact_mut(TYPE_BYTES)
        .for_each(|ty| ty[4..8].copy_from_slice(&(u32::from(PTR) << 24).to_ne_bytes()));
    assert_eq!(Btf::parse(&b.finish(), NAMES).err(), None);
    b.refer(PTR, "", 0);
    let limit = Btf::parse(&b.finish(), NAMES).err();
    assert_eq!(limit, Some(BtfError::Limit("types", MAX_TYPES)));

    let mut data = sample();
    data.resize(MAX_INPUT_BYTES, 0);
    assert_eq!(Btf::parse(&data, NAMES).err(), None);
    data.push(0);
    let limit = Btf::parse(&data, NAMES).err();
    assert_eq!(limit, Some(BtfError::Limit("bytes", MAX_INPUT_BYTES)));

    let mut b = Builder::new();
    for _ in 0..MAX_FOUND {
        b.refer(TYPEDEF, "iter", 0);
    }
    assert_eq!(Btf::parse(&b.finish(), NAMES).err(), None);
    b.refer(TYPEDEF, "iter", 0);
    assert!(matches!(
        Btf::parse(&b.finish(), NAMES),
        Err(BtfError::Limit(_, MAX_FOUND))
    ));
}

#[test]
fn an_endless_name_is_not_read_for_every_type() {
    let mut b = Builder::new();
    b.strings = vec![b'x'; 8 << 20];
    (b.strings[0], b.strings[(8 << 20) - 1]) = (0, 0);
    for _ in 0..200_000 {
        b.types
            .extend([1, u32::from(FUNC) << 24, 0].map(u32::to_ne_bytes).concat());
    }
    // Read in full this would be 1.6 TB: minutes, not seconds.
    let begun = std::time::Instant::now();
    assert_eq!(Btf::parse(&b.finish(), NAMES).err(), None);
    assert!(begun.elapsed().as_secs() < 10);
}

#[test]
fn a_foreign_or_broken_header_is_named() {
    let with = |at: usize, byte: u8| {
        let mut data = sample();
        data[at] = byte;
        Btf::parse(&data, NAMES).err()
    };
    let mut swapped = sample();
    swapped.swap(0, 1);
    assert_eq!(
        Btf::parse(&swapped, NAMES).err(),
        Some(BtfError::WrongEndian)
    );
    assert!(matches!(with(0, 1), Some(BtfError::BadMagic(_))));
    assert_eq!(with(2, 2), Some(BtfError::UnknownVersion(2)));
    let low = if cfg!(target_endian = "little") { 0 } else { 3 };
    let wrong_length = BtfError::Malformed("the header has a wrong length");
    assert_eq!(with(4 + low, 20), Some(wrong_length));
    assert!(matches!(
        with(8 + 3 - low, 0x7f),
        Some(BtfError::Malformed(_))
    ));
    assert!(matches!(
        with(20 + 3 - low, 0x7f),
        Some(BtfError::Malformed(_))
    ));
    let mut b = Builder::new();
    b.strings[0] = b'x';
    b.name("x");
    assert!(matches!(
        Btf::parse(&b.finish(), NAMES),
        Err(BtfError::Malformed(_))
    ));
    let mut unended = sample();
    *unended.last_mut().unwrap() = b'x';
    assert!(matches!(
        Btf::parse(&unended, NAMES),
        Err(BtfError::Malformed(_))
    ));
}

#[test]
fn a_longer_header_is_skipped() {
    let mut data = sample();
    data[4..8].copy_from_slice(&32_u32.to_ne_bytes());
    data.splice(HEADER_BYTES..HEADER_BYTES, [0xff; 8]);
    assert_eq!(offset(&data, "task", "pid"), Ok(Some(8)));
}

#[test]
fn bad_references_are_errors_when_asked_about() {
    let mut b = Builder::new();
    b.refer(TYPEDEF, "task_t", 1000);
    b.structure("outer", 4, &[("x", 0, 40)]);
    let data = b.finish();
    let too_high = BtfError::Malformed("a type id is too high");
    assert_eq!(offset(&data, "task_t", "x"), Err(too_high));
    assert_eq!(offset(&data, "outer", "x"), Err(OUTSIDE));
    b.add(TYPEDEF, "", 0, 0, &[]);
    let name_at = b.types.len() - TYPE_BYTES;
    b.types[name_at..name_at + 4].copy_from_slice(&u32::MAX.to_ne_bytes());
    let outside = BtfError::Malformed("a name is outside the strings");
    assert_eq!(Btf::parse(&b.finish(), NAMES).err(), Some(outside));
    let mut b = Builder::new();
    b.add(20, "", 0, 0, &[]);
    assert_eq!(
        Btf::parse(&b.finish(), NAMES).err(),
        Some(BtfError::UnknownKind(20))
    );
}

#[test]
fn every_truncation_is_an_error() {
    let data = sample();
    assert_eq!(ask_everything(&data), Ok(()));
    for length in 0..data.len() {
        assert!(ask_everything(&data[..length]).is_err(), "{length} bytes");
    }
}

#[test]
fn a_type_section_cut_anywhere_but_between_types_is_an_error() {
    let data = sample();
    let starts = Btf::parse(&data, &[]).unwrap().starts;
    for length in 0..word(data.first_chunk::<HEADER_BYTES>().unwrap(), 12) {
        let mut cut = data.clone();
        cut[12..16].copy_from_slice(&length.to_ne_bytes());
        assert_eq!(
            ask_everything(&cut).is_ok(),
            starts.contains(&length),
            "{length} bytes"
        );
    }
}

type RandomType = (u8, usize, u32, u32, [u8; 12]);

/// Returns small numbers, so that most references lead somewhere.
fn random_types() -> impl Strategy<Value = Vec<RandomType>> {
    let kinds = prop_oneof![1_u8..20, Just(STRUCT), Just(STRUCT | FLAG), Just(TYPEDEF)];
    prop::collection::vec(
        (kinds, 0_usize..12, 0_u32..4, 0_u32..24, any::<[u8; 12]>()),
        0..24,
    )
}

fn random_graph(types: Vec<RandomType>) -> Vec<u8> {
    let mut b = Builder::new();
    for name in MEMBERS {
        b.name(name);
    }
    for (kind, name, count, id, extra) in types {
        let words = match kind {
            1 | 14 | 17 => 1,
            3 => 3,
            6 | FUNC_PROTO => 2 * count,
            STRUCT | UNION | 15 | 19 | 0x84 => 3 * count,
            _ => 0,
        };
        let extra = extra.map(|byte| u32::from(byte % 40));
        let name = NAMES.get(name).copied().unwrap_or("");
        b.add(kind, name, count, id, &extra[..words as usize]);
    }
    b.finish()
}

proptest! {
    #[test]
    fn flipped_bytes_never_panic(flips: Vec<(prop::sample::Index, u8)>) {
        let mut data = sample();
        for (at, byte) in flips.into_iter().take(8) {
            let at = at.index(data.len());
            data[at] = byte;
        }
        let _ = ask_everything(&data);
    }

    #[test]
    fn random_bytes_never_panic(bytes: Vec<u8>) {
        let _ = ask_everything(&bytes);
        let mut b = Builder::new();
        b.types = bytes;
        let _ = ask_everything(&b.finish());
    }

    #[test]
    fn random_graphs_are_read_and_never_panic(types in random_types()) {
        prop_assert_eq!(ask_everything(&random_graph(types)), Ok(()));
    }
}

#[test]
fn reads_the_running_kernel() {
    let path = "/sys/kernel/btf/vmlinux";
    let Ok(data) = std::fs::read(path) else {
        eprintln!("skipped: {path} is not readable here");
        return;
    };
    let names = [
        "task_struct",
        "signal_struct",
        "upid",
        "pid",
        "sched_process_exit",
        "bpf_iter_task",
        "list_head",
        "no_such",
    ];
    let btf = Btf::parse(&data, &names).unwrap();
    let offset = |structure, member| btf.offset_of(structure, member).unwrap();
    let pid = offset("task_struct", "pid").unwrap();
    assert_eq!(offset("task_struct", "tgid"), Some(pid + 4));
    assert!(pid < btf.size_of("task_struct").unwrap().unwrap());
    assert!(offset("signal_struct", "live").is_some());
    assert_eq!(offset("upid", "nr"), Some(0));
    assert_eq!(offset("task_struct", "no_such"), None);
    assert_eq!(
        btf.size_of("list_head"),
        Ok(Some(2 * size_of::<usize>() as u32))
    );
    assert_eq!(btf.size_of("upid"), Ok(Some(2 * size_of::<usize>() as u32)));
    let next = offset("task_struct", "tasks.next").unwrap();
    assert_eq!(
        offset("task_struct", "tasks.prev"),
        Some(next + size_of::<usize>() as u32)
    );
    assert!(matches!(
        btf.tracepoint_args("sched_process_exit"),
        Ok(Some(1 | 2))
    ));
}
