// SPDX-License-Identifier: GPL-2.0-only
//! GFP flags: what an allocation may do to get its memory.

use bitflags::bitflags;

bitflags! {
    /// What the allocator may do for the caller. The back ends of this crate never sleep for
    /// memory; the flags are there for the code's honesty, for a port, and for the debug check
    /// that nothing that may reclaim is called in interrupt context.
    #[doc(alias = "gfp_t")]
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Flags: u32 {
        /// May use the emergency reserves.
        #[doc(alias = "__GFP_HIGH")]
        const HIGH = 0x20;
        /// May start I/O to free memory.
        #[doc(alias = "__GFP_IO")]
        const IO = 0x40;
        /// May call into file systems to free memory.
        #[doc(alias = "__GFP_FS")]
        const FS = 0x80;
        /// Give zeroed memory.
        #[doc(alias = "__GFP_ZERO")]
        const ZERO = 0x100;
        /// May sleep while it frees memory.
        #[doc(alias = "__GFP_DIRECT_RECLAIM")]
        const DIRECT_RECLAIM = 0x400;
        /// Never fails: waits until there is memory.
        #[doc(alias = "__GFP_NOFAIL")]
        const NOFAIL = 0x8000;
        /// May wake the thread that frees memory.
        #[doc(alias = "__GFP_KSWAPD_RECLAIM")]
        const KSWAPD_RECLAIM = 0x800;
    }
}

/// For callers that may sleep and hold nothing that reclaim needs.
pub const GFP_KERNEL: Flags = GFP_NOFS.union(Flags::FS);
/// For callers that hold file-system locks or a journal handle: reclaim must not come back to us.
pub const GFP_NOFS: Flags = GFP_NOIO.union(Flags::IO);
/// For the block layer: reclaim must not start I/O.
pub const GFP_NOIO: Flags = Flags::DIRECT_RECLAIM.union(Flags::KSWAPD_RECLAIM);
/// For interrupt context and under spinlocks: never sleeps.
pub const GFP_ATOMIC: Flags = Flags::HIGH.union(Flags::KSWAPD_RECLAIM);
/// Or-ed to another that may sleep: waits until there is memory. For what is half done, and can neither be finished nor undone
/// without: as C has it where a transaction is open.
pub const GFP_NOFAIL: Flags = Flags::NOFAIL;
#[doc(alias = "__GFP_ZERO")]
/// Or-ed to another: give zeroed memory.
pub const GFP_ZERO: Flags = Flags::ZERO;
