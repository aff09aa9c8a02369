// SPDX-License-Identifier: GPL-2.0-only
//! Random edits that know what they change: fields of structures, with values that have a meaning there.

use super::base::{Base, NAMES, base};
use super::layout::{Kind, Place};
use super::{Case, Edit, Op, Rng, Value};

/// A case has no more edits than this.
pub const MOST_EDITS: usize = 12;

/// A field: where, how many bytes, as the journal has it.
type Field = (u32, u8, bool);

/// Changes a case in one way or another.
pub fn mutate(case: &mut Case, rng: &mut Rng) {
    let of = base(&case.base);
    match rng.below(100) {
        _ if case.edits.is_empty() => push(case, of, rng),
        0..60 if case.edits.len() < MOST_EDITS => push(case, of, rng),
        0..75 => {
            let at = rng.below(case.edits.len());
            if let Some(edit) = same_place(of, &case.edits[at].place, rng) {
                case.edits[at] = edit;
            }
        }
        75..85 => {
            let at = rng.below(case.edits.len());
            case.edits.remove(at);
        }
        85..95 if case.edits.len() < MOST_EDITS => {
            // The same somewhere else.
            let mut edit = rng.pick(&case.edits).clone();
            let kind = of.layout.place(&edit.place).map(|place| std::mem::discriminant(&place.kind));
            let like = |place: &&Place| Some(std::mem::discriminant(&place.kind)) == kind;
            let others: Vec<&Place> = of.layout.places.iter().filter(like).collect();
            if !others.is_empty() {
                edit.place = rng.pick(&others).name.clone();
                case.edits.push(edit);
            }
        }
        95..98 => {
            let at = rng.below(case.edits.len());
            case.edits[at].bad ^= true;
        }
        _ => {
            case.base = rng.pick(&NAMES).to_string();
            let of = base(&case.base);
            case.edits.retain(|edit| of.layout.place(&edit.place).is_some());
        }
    }
}

/// A new case with some edits.
pub fn random(rng: &mut Rng) -> Case {
    let mut case = Case::sound(rng.pick::<&str>(&NAMES));
    if rng.one_in(8) {
        case.options = rng.pick(&["errors=remount-ro", "ro", "data=journal", "dioread_lock", "discard"]).to_string();
    }
    for _ in 0..1 + rng.below(5) {
        let of = base(&case.base);
        push(&mut case, of, rng);
    }
    case
}

fn push(case: &mut Case, base: &Base, rng: &mut Rng) {
    // What is left alone most often would be most of the places: kinds come first.
    let kinds: [fn(&Kind) -> bool; 14] = [
        |kind| matches!(kind, Kind::Super),
        |kind| matches!(kind, Kind::Group(_)),
        |kind| matches!(kind, Kind::BlockBitmap(_) | Kind::InodeBitmap(_)),
        |kind| matches!(kind, Kind::Inode(_)),
        |kind| matches!(kind, Kind::Inode(_)),
        |kind| matches!(kind, Kind::Extent | Kind::Indirect),
        |kind| matches!(kind, Kind::Extent | Kind::Indirect),
        |kind| matches!(kind, Kind::Dir),
        |kind| matches!(kind, Kind::DxRoot | Kind::DxNode),
        |kind| matches!(kind, Kind::Xattr),
        |kind| matches!(kind, Kind::JournalSuper),
        |kind| matches!(kind, Kind::Log | Kind::LogData(..)),
        |kind| matches!(kind, Kind::Orphan | Kind::Symlink),
        |kind| matches!(kind, Kind::Data),
    ];
    for _ in 0..8 {
        let kind = rng.pick(&kinds);
        let places: Vec<&Place> = base.layout.places.iter().filter(|place| kind(&place.kind)).collect();
        if !places.is_empty() {
            let place = *rng.pick(&places);
            case.edits.push(edit(base, place, rng));
            return;
        }
    }
}

fn same_place(base: &Base, name: &str, rng: &mut Rng) -> Option<Edit> {
    base.layout.place(name).map(|place| edit(base, place, rng))
}

fn edit(base: &Base, place: &Place, rng: &mut Rng) -> Edit {
    let (offset, width, be) = field(base, place, rng);
    let op = match rng.below(20) {
        0 => Op::Xor(vec![1 << rng.below(8)]),
        1 => Op::Fill(*rng.pick(&[0, 0xff, 1]), 1 + rng.below(place.len.min(256)) as u32),
        2 => {
            let alike = |other: &&Place| other.len == place.len;
            let others: Vec<&Place> = base.layout.places.iter().filter(alike).collect();
            let from = rng.pick(&others).name.clone();
            return Edit { place: place.name.clone(), offset: 0, op: Op::Copy(from), bad: rng.one_in(40) };
        }
        3 if matches!(place.kind, Kind::Indirect | Kind::Data) => {
            let to = Value::Block(rng.pick(&base.layout.places).name.clone(), 0);
            Op::Words(to, place.len as u32 / 4)
        }
        3 => Op::Hex((0..1 + rng.below(12)).map(|_| rng.any() as u8).collect()),
        _ => Op::Int { width, be, value: interesting(base, place, offset, width, be, rng) },
    };
    Edit { place: place.name.clone(), offset, op, bad: rng.one_in(40) }
}

/// A number that is one too many, or none, or leads somewhere.
fn interesting(base: &Base, place: &Place, offset: u32, width: u8, be: bool, rng: &mut Rng) -> Value {
    let at = (place.at as usize + offset as usize).min(base.bytes.len() - 8);
    let bytes = &base.bytes[at..at + usize::from(width)];
    let old = bytes
        .iter()
        .enumerate()
        .fold(0u64, |old, (n, byte)| old | u64::from(*byte) << (8 * if be { bytes.len() - 1 - n } else { n }));
    let bits = u32::from(width) * 8;
    let all = u64::MAX >> (64 - bits);
    let geo = &base.layout.geo;
    let to_blocks = matches!(place.kind, Kind::Inode(_) | Kind::Extent | Kind::Indirect | Kind::Group(_));
    if width >= 4 && (rng.one_in(4) || to_blocks && rng.one_in(2)) {
        let other = rng.pick(&base.layout.places);
        return Value::Block(other.name.clone(), *rng.pick(&[0, 0, 0, 1, -1]));
    }
    let inodes = u64::from(geo.inodes_per_group * geo.groups);
    let n = match rng.below(16) {
        0 => 0,
        1 => 1,
        2 => all,
        3 => all >> 1,
        4 => (all >> 1) + 1,
        5 => old.wrapping_add(1),
        6 => old.wrapping_sub(1),
        7 => old ^ 1 << rng.below(bits as usize),
        8 => geo.blocks.wrapping_add_signed(*rng.pick(&[-1, 0, 1])),
        9 => inodes.wrapping_add_signed(*rng.pick(&[-1, 0, 1])),
        10 => geo.block_size as u64 + rng.below(9) as u64 - 4,
        11 => rng.below(32) as u64,
        12 => old.wrapping_mul(2),
        13 => rng.below(geo.blocks as usize) as u64,
        14 => rng.below(16 + inodes as usize) as u64,
        _ => rng.any(),
    };
    Value::Num(n & all)
}

const SUPER: [Field; 44] = [
    (0x00, 4, false),
    (0x04, 4, false),
    (0x08, 4, false),
    (0x0c, 4, false),
    (0x10, 4, false),
    (0x14, 4, false),
    (0x18, 4, false),
    (0x1c, 4, false),
    (0x20, 4, false),
    (0x24, 4, false),
    (0x28, 4, false),
    (0x3a, 2, false),
    (0x3c, 2, false),
    (0x48, 4, false),
    (0x4c, 4, false),
    (0x54, 4, false),
    (0x58, 2, false),
    (0x5c, 4, false),
    (0x60, 4, false),
    (0x64, 4, false),
    (0xcc, 1, false),
    (0xce, 2, false),
    (0xe0, 4, false),
    (0xe4, 4, false),
    (0xe8, 4, false),
    (0xe8, 4, false),
    (0xec, 4, false),
    (0xfc, 1, false),
    (0xfe, 2, false),
    (0x100, 4, false),
    (0x104, 4, false),
    (0x150, 4, false),
    (0x154, 4, false),
    (0x158, 4, false),
    (0x15c, 2, false),
    (0x15e, 2, false),
    (0x160, 4, false),
    (0x164, 2, false),
    (0x170, 4, false),
    (0x174, 1, false),
    (0x175, 1, false),
    (0x194, 4, false),
    (0x24c, 4, false),
    (0x280, 4, false),
];

const GROUP: [Field; 14] = [
    (0x00, 4, false),
    (0x04, 4, false),
    (0x08, 4, false),
    (0x0c, 2, false),
    (0x0e, 2, false),
    (0x10, 2, false),
    (0x12, 2, false),
    (0x1c, 2, false),
    (0x20, 4, false),
    (0x24, 4, false),
    (0x28, 4, false),
    (0x2c, 2, false),
    (0x2e, 2, false),
    (0x32, 2, false),
];

const INODE: [Field; 22] = [
    (0x00, 2, false),
    (0x04, 4, false),
    (0x04, 4, false),
    (0x14, 4, false),
    (0x1a, 2, false),
    (0x1c, 4, false),
    (0x20, 4, false),
    (0x20, 4, false),
    (0x28, 2, false),
    (0x2a, 2, false),
    (0x2c, 2, false),
    (0x2e, 2, false),
    (0x64, 4, false),
    (0x68, 4, false),
    (0x6c, 4, false),
    (0x74, 2, false),
    (0x76, 2, false),
    (0x80, 2, false),
    // Attributes behind the inode's own fields.
    (0xa0, 4, false),
    (0xa4, 1, false),
    (0xa6, 2, false),
    (0xac, 4, false),
];

const JOURNAL: [Field; 14] = [
    (0, 4, true),
    (4, 4, true),
    (8, 4, true),
    (12, 4, true),
    (16, 4, true),
    (20, 4, true),
    (24, 4, true),
    (28, 4, true),
    (32, 4, true),
    (36, 4, true),
    (40, 4, true),
    (44, 4, true),
    (80, 1, false),
    (84, 4, true),
];

const XATTR: [Field; 10] = [
    (0, 4, false),
    (4, 4, false),
    (8, 4, false),
    (12, 4, false),
    (32, 1, false),
    (33, 1, false),
    (34, 2, false),
    (36, 4, false),
    (40, 4, false),
    (44, 4, false),
];

/// A field of a structure; sometimes just any bytes.
fn field(base: &Base, place: &Place, rng: &mut Rng) -> Field {
    let bytes = &base.bytes[place.at as usize..][..place.len];
    let word = |at: usize| bytes.get(at..at + 2).map_or(0, |b| usize::from(b[0]) | usize::from(b[1]) << 8);
    let any = |rng: &mut Rng| {
        let width = *rng.pick(&[1u8, 2, 4]);
        ((rng.below(place.len / usize::from(width)) * usize::from(width)) as u32, width, false)
    };
    if rng.one_in(12) {
        return any(rng);
    }
    let field = match place.kind {
        Kind::Super => *rng.pick(&SUPER),
        Kind::Group(_) => *rng.pick(&GROUP),
        Kind::Inode(_) if rng.one_in(3) => extent_field(4, rng, 0x28),
        Kind::Inode(_) => *rng.pick(&INODE),
        Kind::Extent => extent_field(word(2), rng, 0),
        Kind::Dir => dir_field(bytes, rng),
        Kind::DxRoot => dx_field(0x20, word(0x22), rng),
        Kind::DxNode => dx_field(8, word(10), rng),
        Kind::Xattr => *rng.pick(&XATTR),
        Kind::JournalSuper => *rng.pick(&JOURNAL),
        Kind::Log => {
            let tag = base.layout.log.map_or(8, |log| log.tag_bytes()) as u32;
            let tag = 12 + rng.below(6) as u32 * tag + *rng.pick(&[0, 4, 6, 8]);
            *rng.pick(&[
                (0, 4, true),
                (4, 4, true),
                (8, 4, true),
                (12, 4, true),
                (16, 4, true),
                (tag, 4, true),
                (tag, 2, true),
            ])
        }
        Kind::Orphan => {
            let slot = 4 * rng.below(8) as u32;
            *rng.pick(&[(slot, 4, false), (place.len as u32 - 8, 4, false)])
        }
        Kind::Indirect => (4 * rng.below(place.len / 4) as u32, 4, false),
        Kind::BlockBitmap(_) | Kind::InodeBitmap(_) => (rng.below(place.len.min(64)) as u32, 4, false),
        Kind::Data | Kind::LogData(..) | Kind::Symlink => any(rng),
    };
    if field.0 as usize + usize::from(field.1) <= place.len { field } else { any(rng) }
}

/// Of the head of a node, or of one of its entries.
fn extent_field(entries: usize, rng: &mut Rng, from: u32) -> Field {
    let entry = 12 + 12 * rng.below(entries) as u32;
    let (at, width) = *rng.pick(&[
        (0, 2),
        (2, 2),
        (4, 2),
        (6, 2),
        (entry, 4),
        (entry, 4),
        (entry + 4, 2),
        (entry + 4, 4),
        (entry + 6, 2),
        (entry + 8, 2),
        (entry + 8, 4),
    ]);
    (from + at, width, false)
}

fn dir_field(bytes: &[u8], rng: &mut Rng) -> Field {
    let mut entries = Vec::new();
    let mut at = 0;
    while at + 8 <= bytes.len() {
        entries.push(at as u32);
        at += (usize::from(bytes[at + 4]) | usize::from(bytes[at + 5]) << 8).max(8);
    }
    let entry = *rng.pick(&entries);
    let (at, width) = *rng.pick(&[(0, 4), (4, 2), (4, 2), (6, 1), (7, 1), (8, 1), (8, 4)]);
    (entry + at, width, false)
}

fn dx_field(entries: usize, count: usize, rng: &mut Rng) -> Field {
    let first = entries as u32;
    let entry = first + 8 * rng.below(count) as u32;
    let (at, width) = *rng.pick(&[
        (first - 4, 1),
        (first - 3, 1),
        (first - 2, 1),
        (first - 1, 1),
        (first, 2),
        (first + 2, 2),
        (entry, 4),
        (entry + 4, 4),
        (entry + 4, 4),
        (4, 2),
    ]);
    (at, width, false)
}
