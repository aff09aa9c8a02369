// SPDX-License-Identifier: GPL-2.0-only
//! `kernel-shim`'s `bio_set`, of its own source, with bios that have only what it needs.

#[path = "../../../kernel-shim/src/block/bioset.rs"]
#[expect(dead_code, reason = "disks have more bios")]
mod bioset;

pub(crate) use bioset::BioSet;

mod blkdev {
    /// There is none here.
    pub struct Gendisk;
}

mod bio {
    use std::ptr::NonNull;

    use super::blkdev::Gendisk;
    use crate::lockdep::{Dep, Kind};
    use crate::sync::models::Data;

    /// Nobody asks.
    #[derive(Clone, Copy)]
    pub struct ReqOpf;

    /// As `kernel-shim`'s, with what loom watches in the place of its contents.
    pub struct Bio {
        pub bi_next: Option<NonNull<Bio>>,
        data: Data,
    }

    impl Bio {
        pub fn unused(_disk: NonNull<Gendisk>) -> Bio {
            Bio { bi_next: None, data: Data::new() }
        }
    }

    /// A bio that is owned.
    pub struct BioPtr(NonNull<Bio>);

    impl BioPtr {
        /// # Safety
        ///
        /// The bio is off its list, and the caller's.
        pub unsafe fn from_nonnull(bio: NonNull<Bio>) -> BioPtr {
            BioPtr(bio)
        }

        pub fn init(&mut self, _opf: ReqOpf) {
            // SAFETY: it is ours.
            unsafe { self.0.as_ref() }.data.bump();
        }

        pub fn into_nonnull(self) -> NonNull<Bio> {
            self.0
        }
    }

    /// There is no lockdep here.
    pub static BIO: Dep = Dep::new(Kind::Map, None, || "");
}

pub(crate) use bio::{Bio, ReqOpf};
pub(crate) use blkdev::Gendisk;
