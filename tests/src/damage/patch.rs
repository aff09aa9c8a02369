// SPDX-License-Identifier: GPL-2.0-only
//! Applies edits to an image.

use std::collections::{BTreeMap, BTreeSet};

use super::disk::Patched;
use super::layout::{Kind, Layout};
use super::{Base, Case, Edit, Op, Value, sums};

fn number(layout: &Layout, value: &Value) -> Option<u64> {
    match value {
        Value::Num(n) => Some(*n),
        Value::Block(name, more) => {
            let block = layout.place(name)?.at / layout.geo.block_size as u64;
            Some(block.wrapping_add_signed(*more))
        }
    }
}

/// Applies one, and leaves the checksum as it is. Nothing for places that are not there, and for bytes behind their ends.
fn apply(image: &mut Patched, layout: &Layout, edit: &Edit) -> Option<()> {
    let place = layout.place(&edit.place)?;
    let from = edit.offset as usize;
    let room = place.len.checked_sub(from)?;
    let mut bytes = match &edit.op {
        Op::Int { width, be, value } => {
            let n = number(layout, value)?;
            match be {
                true => n.to_be_bytes()[8 - usize::from(*width)..].to_vec(),
                false => n.to_le_bytes()[..usize::from(*width)].to_vec(),
            }
        }
        Op::Hex(bytes) => bytes.clone(),
        Op::Xor(mask) => {
            let there = image.get(place.at + from as u64, mask.len());
            there.iter().zip(mask).map(|(a, b)| a ^ b).collect()
        }
        Op::Fill(byte, len) => vec![*byte; *len as usize],
        Op::Words(value, count) => (number(layout, value)? as u32).to_le_bytes().repeat(*count as usize),
        Op::Copy(other) => {
            let other = layout.place(other)?;
            image.get(other.at, other.len)
        }
    };
    bytes.truncate(room);
    image.write(place.at + from as u64, &bytes);
    Some(())
}

/// The image of a case. Names of edits whose place the base does not have come back beside it.
pub fn patched(base: &Base, case: &Case) -> (Patched, Vec<String>) {
    let mut image = Patched::new(base.bytes.clone());
    let layout = &base.layout;
    let mut unknown = Vec::new();
    let mut todo: BTreeMap<(Kind, String), ()> = BTreeMap::new();
    let mut bad = BTreeSet::new();
    for edit in &case.edits {
        if apply(&mut image, layout, edit).is_none() {
            unknown.push(edit.to_string());
        } else if edit.bad {
            bad.insert(edit.place.clone());
        } else if let Some(place) = layout.place(&edit.place) {
            todo.insert((place.kind, edit.place.clone()), ());
        }
    }
    // From data up to the super block: what has a checksum of another comes after it.
    while let Some(((_, name), ())) = todo.pop_first() {
        if bad.contains(&name) {
            continue;
        }
        let next = layout.place(&name).and_then(|place| sums::fix(&mut image, layout, place));
        if let Some(next) = next.and_then(|next| layout.place(&next)) {
            todo.insert((next.kind, next.name.clone()), ());
        }
    }
    (image, unknown)
}
