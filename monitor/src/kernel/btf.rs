//! Reads the kernel's type information (BTF): member offsets, struct sizes, tracepoint arguments.
//! Ours because aya exposes no members and other readers are slow; it makes one pass and stores
//! four bytes per type. It works on bytes it does not trust: no aya, no I/O, no panic may enter.
//!
//! The format: <https://docs.kernel.org/bpf/btf.html>. Type 0 is `void` and is not stored.

/// The longest input; the kernel's own is about 6 MB.
const MAX_INPUT_BYTES: usize = 64 << 20;
/// A kernel has 100,000 to 200,000.
const MAX_TYPES: usize = 4_000_000;
/// Types that bear one of the names looked for; the kernel repeats few names.
const MAX_FOUND: usize = 1024;
/// Nesting of anonymous structs, and the length of a chain of typedefs and qualifiers.
const MAX_DEPTH: usize = 16;
/// Members looked at to find one: anonymous structs that refer to each other multiply.
const MAX_MEMBERS: usize = 100_000;

const MAGIC: u16 = 0xeb9f;
const VERSION: u8 = 1;
const HEADER_BYTES: usize = 24;
const TYPE_BYTES: usize = 12;
const MEMBER_BYTES: usize = 12;
const PARAM_BYTES: usize = 8;
const TRACEPOINT_PREFIX: &str = "btf_trace_";

const PTR: u8 = 2;
const STRUCT: u8 = 4;
const UNION: u8 = 5;
const TYPEDEF: u8 = 8;
const RESTRICT: u8 = 11;
const FUNC: u8 = 12;
const FUNC_PROTO: u8 = 13;
const TYPE_TAG: u8 = 18;

/// Why type information could not be read, or a question about it not be answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BtfError {
    /// The first two bytes are not BTF's magic number.
    #[error("not type information: it begins with {0:#06x} instead of {MAGIC:#06x}")]
    BadMagic(u16),
    /// The magic number is byte-swapped.
    #[error("type information is in the other byte order; take the running kernel's own")]
    WrongEndian,
    /// A version this reader does not know.
    #[error("type information has version {0}, and only version {VERSION} is known")]
    UnknownVersion(u8),
    /// A kind of type whose length is unknown, so the types after it cannot be found.
    #[error("type kind {0} is unknown; the kernel may be newer than this program")]
    UnknownKind(u8),
    /// A length, offset or index leads outside the input.
    #[error("malformed type information: {0}")]
    Malformed(&'static str),
    /// More of something than this reader accepts. A circle of types exceeds the levels.
    #[error("type information has more than {1} {0}")]
    Limit(&'static str, usize),
    /// The question names something that was not passed to [`Btf::parse`].
    #[error("{0} was not looked for; pass the name when parsing")]
    NotWanted(String),
}

const TOO_DEEP: BtfError = BtfError::Limit("levels of types within types", MAX_DEPTH);
const CUT_SHORT: BtfError = BtfError::Malformed("a type is cut short");
const OUTSIDE: BtfError = BtfError::Malformed("a member is outside its struct");

type Answer<T> = Result<Option<T>, BtfError>;

/// What a name stands for. It can stand for several at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// A struct or a union.
    Struct,
    Typedef,
    /// The typedef `btf_trace_NAME` stands for the tracepoint NAME.
    Tracepoint,
    Func,
}

/// One type record, with the data that follows it.
#[derive(Debug, Clone, Copy)]
struct Type<'a> {
    name_off: u32,
    kind: u8,
    /// In a struct: the upper 8 bits of a member's offset are its width as a bitfield.
    kind_flag: bool,
    /// Bytes of a struct; the id of the type that a pointer, typedef or qualifier refers to.
    size_or_id: u32,
    extra: &'a [u8],
}

/// A member, at its distance from the start of the struct that was asked about.
#[derive(Debug, Clone, Copy)]
struct Member {
    name_off: u32,
    type_id: u32,
    offset_bits: u64,
    bitfield: bool,
}

/// Type information, checked for form and indexed by the names that will be asked for.
///
/// For the complete kind (`vmlinux`), not the split kind of kernel modules.
#[derive(Debug)]
pub struct Btf<'a> {
    types: &'a [u8],
    /// Ends with a zero byte, so every name in it ends.
    strings: &'a [u8],
    /// Where in `types` the type with id `index + 1` begins.
    starts: Vec<u32>,
    /// The names to look for, sorted.
    wanted: Vec<&'a str>,
    /// The types that bear them, in the order of their ids.
    found: Vec<(&'a str, Class, u32)>,
}

impl<'a> Btf<'a> {
    /// Reads `data` once, looking for `names`: of structs, unions, typedefs of them, functions and
    /// tracepoints (with or without `btf_trace_`), spelled as in the questions that follow.
    ///
    /// # Errors
    /// The data is malformed, foreign, newer than this reader or beyond one of its limits.
    pub fn parse(data: &'a [u8], names: &[&'a str]) -> Result<Self, BtfError> {
        let (types, strings) = sections(data)?;
        let bare = |name: &&'a str| name.strip_prefix(TRACEPOINT_PREFIX).unwrap_or(name);
        let mut wanted: Vec<_> = names.iter().map(bare).collect();
        wanted.retain(|name| !name.is_empty());
        wanted.sort_unstable();
        let mut btf = Self {
            types,
            strings,
            wanted,
            starts: Vec::new(),
            found: Vec::new(),
        };
        btf.index()?;
        Ok(btf)
    }

    /// The offset in bytes of a member. Members of anonymous structs and unions count as members
    /// of the struct around them. A path such as `signal.live` enters members that are structs;
    /// it follows no pointers.
    ///
    /// `None`: no such struct, no such member, or a bitfield. Where several structs bear the name,
    /// the first that has the member answers.
    ///
    /// # Errors
    /// The types involved are malformed, or `structure` was not passed to [`Btf::parse`].
    pub fn offset_of(&self, structure: &str, member: &str) -> Result<Option<u32>, BtfError> {
        for id in self.structs(structure)? {
            if let Some(bits) = self.path_offset(id, member)? {
                return u32::try_from(bits / 8).map(Some).map_err(|_| OUTSIDE);
            }
        }
        Ok(None)
    }

    /// The size in bytes of a struct or union. `None`: there is none of that name. Where several
    /// bear it, the first answers.
    ///
    /// # Errors
    /// The types involved are malformed, or `structure` was not passed to [`Btf::parse`].
    pub fn size_of(&self, structure: &str) -> Result<Option<u32>, BtfError> {
        for id in self.structs(structure)? {
            if let Some(ty) = self.resolve_struct(id)? {
                return Ok(Some(ty.size_or_id));
            }
        }
        Ok(None)
    }

    /// The number of arguments a `tp_btf` program receives at the tracepoint `name`, which is
    /// given without `btf_trace_`. `None`: the kernel has no such tracepoint.
    ///
    /// # Errors
    /// The types involved are malformed, or `name` was not passed to [`Btf::parse`].
    pub fn tracepoint_args(&self, name: &str) -> Result<Option<usize>, BtfError> {
        for id in self.ids(name, Class::Tracepoint)? {
            let pointer = self.resolve(id)?.filter(|ty| ty.kind == PTR);
            let Some(Type { size_or_id, .. }) = pointer else {
                continue;
            };
            let proto = self.resolve(size_or_id)?.filter(|ty| ty.kind == FUNC_PROTO);
            let Some(proto) = proto else { continue };
            // The first parameter is the probe's own `void *`, which programs do not see.
            return Ok((proto.extra.len() / PARAM_BYTES).checked_sub(1));
        }
        Ok(None)
    }

    /// Whether the kernel has a function of this name, for example `bpf_iter_task`.
    ///
    /// # Errors
    /// `name` was not passed to [`Btf::parse`].
    pub fn has_func(&self, name: &str) -> Result<bool, BtfError> {
        Ok(self.ids(name, Class::Func)?.next().is_some())
    }

    /// Walks all types once.
    fn index(&mut self) -> Result<(), BtfError> {
        let longest = self.wanted.iter().map(|name| name.len()).max().unwrap_or(0);
        let read_at_most = TRACEPOINT_PREFIX.len() + longest + 1;
        let mut at = 0;
        while at < self.types.len() {
            if self.starts.len() == MAX_TYPES {
                return Err(BtfError::Limit("types", MAX_TYPES));
            }
            let ty = Type::decode(self.types, at)?;
            self.starts.push(at as u32);
            if let Some((name, class)) = self.wanted_name(ty, read_at_most)? {
                if self.found.len() == MAX_FOUND {
                    return Err(BtfError::Limit("types of the names looked for", MAX_FOUND));
                }
                self.found.push((name, class, self.starts.len() as u32));
            }
            at += TYPE_BYTES + ty.extra.len();
        }
        Ok(())
    }

    /// `read_at_most` bounds the search for a name's end: many types may share one endless name.
    fn wanted_name(&self, ty: Type<'a>, read_at_most: usize) -> Answer<(&'a str, Class)> {
        let mut class = match ty.kind {
            STRUCT | UNION => Class::Struct,
            TYPEDEF => Class::Typedef,
            FUNC => Class::Func,
            _ => return Ok(None),
        };
        let text = self.text(ty.name_off)?;
        let end = text.iter().take(read_at_most).position(|&byte| byte == 0);
        let mut name = &text[..end.unwrap_or(0)];
        if let (Class::Typedef, Some(rest)) =
            (class, name.strip_prefix(TRACEPOINT_PREFIX.as_bytes()))
        {
            (class, name) = (Class::Tracepoint, rest);
        }
        let same = |wanted: &&str| wanted.as_bytes().cmp(name);
        let index = self.wanted.binary_search_by(same).ok();
        Ok(index.map(|index| (self.wanted[index], class)))
    }

    fn ids(&self, name: &str, class: Class) -> Result<impl Iterator<Item = u32>, BtfError> {
        if self.wanted.binary_search(&name).is_err() {
            return Err(BtfError::NotWanted(name.to_owned()));
        }
        let of_class = move |found: &&(&str, Class, u32)| (found.0, found.1) == (name, class);
        Ok(self.found.iter().filter(of_class).map(|found| found.2))
    }

    /// Tags before typedefs: in C the two do not share a name space.
    fn structs(&self, name: &str) -> Result<impl Iterator<Item = u32>, BtfError> {
        let tags = self.ids(name, Class::Struct)?;
        Ok(tags.chain(self.ids(name, Class::Typedef)?))
    }

    /// The strings from a name on; the first zero byte ends it.
    fn text(&self, name_off: u32) -> Result<&'a [u8], BtfError> {
        let text = self.strings.get(name_off as usize..);
        text.ok_or(BtfError::Malformed("a name is outside the strings"))
    }

    fn is_name(&self, name_off: u32, name: &[u8]) -> Result<bool, BtfError> {
        let rest = self.text(name_off)?.strip_prefix(name);
        Ok(rest.is_some_and(|rest| rest.first() == Some(&0)))
    }

    /// The type behind typedefs, qualifiers and tags; `None` is `void`.
    fn resolve(&self, mut id: u32) -> Answer<Type<'a>> {
        for _ in 0..=MAX_DEPTH {
            if id == 0 {
                return Ok(None);
            }
            let start = self.starts.get(id as usize - 1);
            let start = *start.ok_or(BtfError::Malformed("a type id is too high"))?;
            let ty = Type::decode(self.types, start as usize)?;
            match ty.kind {
                TYPEDEF..=RESTRICT | TYPE_TAG => id = ty.size_or_id,
                _ => return Ok(Some(ty)),
            }
        }
        Err(TOO_DEEP)
    }

    fn resolve_struct(&self, id: u32) -> Answer<Type<'a>> {
        let ty = self.resolve(id)?;
        Ok(ty.filter(|ty| matches!(ty.kind, STRUCT | UNION)))
    }

    /// `None` also for a bitfield and for what does not begin at a byte.
    fn path_offset(&self, mut id: u32, path: &str) -> Answer<u64> {
        let mut offset_bits = 0;
        for name in path.split('.') {
            let member = self.find(id, name.as_bytes())?;
            let Some(member) = member.filter(|member| !member.bitfield) else {
                return Ok(None);
            };
            offset_bits += member.offset_bits;
            id = member.type_id;
        }
        Ok(Some(offset_bits).filter(|bits| bits.is_multiple_of(8)))
    }

    /// Looks for a member in a struct and in its anonymous ones. `None` also if it is no struct.
    fn find(&self, id: u32, name: &[u8]) -> Answer<Member> {
        let mut members_left = MAX_MEMBERS;
        let mut pending = vec![(id, 0, 0)];
        while let Some((id, base_bits, level)) = pending.pop() {
            let Some(ty) = self.resolve_struct(id)? else {
                continue;
            };
            if level > MAX_DEPTH {
                return Err(TOO_DEEP);
            }
            for mut member in ty.members() {
                let too_many = BtfError::Limit("members to search", MAX_MEMBERS);
                members_left = members_left.checked_sub(1).ok_or(too_many)?;
                if member.offset_bits > 8 * u64::from(ty.size_or_id) {
                    return Err(OUTSIDE);
                }
                member.offset_bits += base_bits;
                if member.name_off == 0 {
                    pending.push((member.type_id, member.offset_bits, level + 1));
                } else if self.is_name(member.name_off, name)? {
                    return Ok(Some(member));
                }
            }
        }
        Ok(None)
    }
}

impl<'a> Type<'a> {
    /// Decodes the type at byte `at`.
    fn decode(types: &'a [u8], at: usize) -> Result<Self, BtfError> {
        let rest = types.get(at..).unwrap_or_default();
        let (head, rest) = rest.split_first_chunk::<TYPE_BYTES>().ok_or(CUT_SHORT)?;
        let info = word(head, 4);
        // Wider than today's 5 and 16 bits: what grows into the unused bits is not misread.
        let (kind, count) = ((info >> 24) as u8 & 0x7f, (info & 0xff_ffff) as usize);
        let extra_bytes = match kind {
            PTR | 7..=FUNC | 16 | TYPE_TAG => 0, // 7: forward declaration, 16: float
            1 | 14 | 17 => 4,                    // integer, variable, declaration tag
            3 => 12,                             // array
            6 | FUNC_PROTO => 8 * count,         // 6: enum
            STRUCT | UNION | 15 | 19 => 12 * count, // 15: data section, 19: enum of 64 bits
            _ => return Err(BtfError::UnknownKind(kind)),
        };
        let extra = rest.get(..extra_bytes).ok_or(CUT_SHORT)?;
        let (name_off, size_or_id) = (word(head, 0), word(head, 8));
        Ok(Self {
            name_off,
            kind,
            kind_flag: info >> 31 == 1,
            size_or_id,
            extra,
        })
    }

    /// The members, where this type is a struct.
    fn members(self) -> impl Iterator<Item = Member> {
        let (records, _) = self.extra.as_chunks::<MEMBER_BYTES>();
        let offset_mask = if self.kind_flag { 0xff_ffff } else { u32::MAX };
        records.iter().map(move |record| {
            let offset = word(record, 8);
            Member {
                name_off: word(record, 0),
                type_id: word(record, 4),
                offset_bits: (offset & offset_mask).into(),
                bitfield: offset & !offset_mask != 0,
            }
        })
    }
}

/// Checks the header and cuts out the types and the strings.
fn sections(data: &[u8]) -> Result<(&[u8], &[u8]), BtfError> {
    if data.len() > MAX_INPUT_BYTES {
        return Err(BtfError::Limit("bytes", MAX_INPUT_BYTES));
    }
    let header = data.first_chunk::<HEADER_BYTES>();
    let header = header.ok_or(BtfError::Malformed("the header is cut short"))?;
    match u16::from_ne_bytes([header[0], header[1]]) {
        MAGIC => (),
        magic if magic.swap_bytes() == MAGIC => return Err(BtfError::WrongEndian),
        magic => return Err(BtfError::BadMagic(magic)),
    }
    if header[2] != VERSION {
        return Err(BtfError::UnknownVersion(header[2]));
    }
    // Sections count from the end of the header, which may have grown.
    let header_bytes = word(header, 4) as usize;
    let body = data
        .get(header_bytes..)
        .filter(|_| header_bytes >= HEADER_BYTES);
    let body = body.ok_or(BtfError::Malformed("the header has a wrong length"))?;
    let section = |at| {
        let (start, length) = (word(header, at) as usize, word(header, at + 4) as usize);
        let section = body.get(start..).and_then(|rest| rest.get(..length));
        section.ok_or(BtfError::Malformed("a section is outside the data"))
    };
    let (types, strings) = (section(8)?, section(16)?);
    if strings.first() != Some(&0) || strings.last() != Some(&0) {
        return Err(BtfError::Malformed("the strings lack a zero byte"));
    }
    Ok((types, strings))
}

/// A number at a fixed place of a record.
fn word<const N: usize>(record: &[u8; N], at: usize) -> u32 {
    u32::from_ne_bytes([record[at], record[at + 1], record[at + 2], record[at + 3]])
}

#[cfg(test)]
mod tests {
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

        /// Members are a name, a type id and an offset field as stored.
        fn record(
            &mut self,
            kind: u8,
            name: &str,
            bytes: u32,
            members: &[(&str, u32, u32)],
        ) -> u32 {
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

    /// A kernel in small: every kind of type once, and everything the questions can meet.
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
            let _ = (
                btf.size_of(name),
                btf.tracepoint_args(name),
                btf.has_func(name),
            );
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
        assert_eq!(
            (btf.has_func("iter"), btf.has_func("exit")),
            (Ok(true), Ok(false))
        );
        assert_eq!(btf.has_func("task"), Ok(false));
    }

    #[test]
    fn a_name_that_was_not_looked_for_is_an_error_and_not_an_absence() {
        let data = sample();
        let btf = Btf::parse(&data, &["iter"]).unwrap();
        let refused = BtfError::NotWanted("task".into());
        assert_eq!(btf.offset_of("task", "pid"), Err(refused.clone()));
        assert_eq!(btf.size_of("task"), Err(refused.clone()));
        assert_eq!(btf.tracepoint_args("task"), Err(refused.clone()));
        assert_eq!(btf.has_func("task"), Err(refused));
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
            b.refer(FUNC, "iter", 0);
        }
        assert_eq!(Btf::parse(&b.finish(), NAMES).err(), None);
        b.refer(FUNC, "iter", 0);
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
        b.add(FUNC, "", 0, 0, &[]);
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

    /// Small numbers, so that most references lead somewhere.
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
        assert_eq!(btf.has_func("bpf_iter_task"), Ok(true));
        assert_eq!(btf.has_func("no_such"), Ok(false));
    }
}
