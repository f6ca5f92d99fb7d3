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

/// A reason why type information could not be read, or a question about it not be answered.
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

/// The kinds of types that a name stands for. It can stand for several at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// A struct or a union.
    Struct,
    Typedef,
    /// The typedef `btf_trace_NAME` stands for the tracepoint NAME.
    Tracepoint,
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
    /// The places in `types` where the type with id `index + 1` begins.
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

    /// Returns the offset in bytes of a member. Members of anonymous structs and unions count as
    /// members of the struct around them. A path such as `signal.live` enters members that are
    /// structs; it follows no pointers.
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

    /// Returns the place of a bitfield, in bits from the start of its struct, on a machine that
    /// counts bits from the lowest. `None`: no such struct or no such member.
    ///
    /// # Errors
    /// The types involved are malformed, or `structure` was not passed to [`Btf::parse`].
    pub fn bit_of(&self, structure: &str, member: &str) -> Result<Option<u32>, BtfError> {
        for id in self.structs(structure)? {
            if let Some(found) = self.find(id, member.as_bytes())? {
                return u32::try_from(found.offset_bits)
                    .map(Some)
                    .map_err(|_| OUTSIDE);
            }
        }
        Ok(None)
    }

    /// Returns the size in bytes of a struct or union. `None`: there is none of that name. Where
    /// several bear it, the first answers.
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

    /// Returns the number of arguments a `tp_btf` program receives at the tracepoint `name`, which
    /// is given without `btf_trace_`. `None`: the kernel has no such tracepoint.
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

    /// Finds a name; `read_at_most` bounds the search for a name's end: many types may share one
    /// endless name.
    fn wanted_name(&self, ty: Type<'a>, read_at_most: usize) -> Answer<(&'a str, Class)> {
        let mut class = match ty.kind {
            STRUCT | UNION => Class::Struct,
            TYPEDEF => Class::Typedef,
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

    /// Returns the strings from a name on; the first zero byte ends it.
    fn text(&self, name_off: u32) -> Result<&'a [u8], BtfError> {
        let text = self.strings.get(name_off as usize..);
        text.ok_or(BtfError::Malformed("a name is outside the strings"))
    }

    fn is_name(&self, name_off: u32, name: &[u8]) -> Result<bool, BtfError> {
        let rest = self.text(name_off)?.strip_prefix(name);
        Ok(rest.is_some_and(|rest| rest.first() == Some(&0)))
    }

    /// Returns the type behind typedefs, qualifiers and tags; `None` is `void`.
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

    /// Returns the place of a member; `None` also for a bitfield and for what does not begin at a
    /// byte.
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

    /// Returns the members, where this type is a struct.
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

/// Reads a number at a fixed place of a record.
fn word<const N: usize>(record: &[u8; N], at: usize) -> u32 {
    u32::from_ne_bytes([record[at], record[at + 1], record[at + 2], record[at + 3]])
}

#[cfg(test)]
mod tests;
