// SPDX-License-Identifier: GPL-2.0-only
//! The memory of requests, as the disk sees it.

use std::vec::Vec;

use super::POISON;
use crate::block::Request;

/// The memory of a request, copied.
pub(in crate::block) fn copy_out(rq: &Request) -> Vec<u8> {
    let mut data = Vec::with_capacity(rq.nr_bytes() as usize);
    rq.for_each_vec(|vec| {
        let (at, len) = (data.len(), vec.bv_len as usize);
        data.resize(at + len, 0);
        // SAFETY: valid until the request ends, by the contract of `bio_add_page`, and `data` has just
        // been made as long. No reference to it is made: a submitter that breaks the contract and
        // changes it under us is what we are here to find.
        unsafe { core::ptr::copy_nonoverlapping(vec.bv_page.as_ptr(), data[at..].as_mut_ptr(), len) };
    });
    data
}

/// Fills the memory of a request with `data`, or with poison.
pub(in crate::block) fn fill(rq: &Request, data: Option<&[u8]>) {
    let mut rest = data;
    rq.for_each_vec(|vec| {
        let (to, len) = (vec.bv_page.as_ptr(), vec.bv_len as usize);
        match rest {
            // SAFETY: valid until the request ends and the device's to write, by the contract of `bio_add_page`.
            None => unsafe { core::ptr::write_bytes(to, POISON, len) },
            Some(data) => {
                let (now, later) = data.split_at(len);
                // SAFETY: as above, and `now` is as long.
                unsafe { core::ptr::copy_nonoverlapping(now.as_ptr(), to, len) };
                rest = Some(later);
            }
        }
    });
}

/// Differs for data that differ by one change, and mostly for others.
pub(in crate::block) fn checksum(data: &[u8]) -> u64 {
    let mut sum = data.len() as u64;
    for word in data.chunks(8) {
        let mut bytes = [0; 8];
        bytes[..word.len()].copy_from_slice(word);
        sum = (sum.rotate_left(5) ^ u64::from_le_bytes(bytes)).wrapping_mul(0x517C_C1B7_2722_0A95);
    }
    sum
}
