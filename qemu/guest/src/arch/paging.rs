// SPDX-License-Identifier: GPL-2.0-only
//! Page tables: everything is mapped at its physical address. boot.s maps the first 4 GiB in 2 MiB pages;
//! here come memory and device registers above that, and 4 KiB pages where protection wants them: no
//! page at 0, no writing to text, no executing of data, no access to the guard pages below stacks.

use alloc::boxed::Box;

use kernel_shim::sync::SpinLock;
use x86_64::{
    PhysAddr, VirtAddr,
    instructions::tlb,
    structures::paging::{
        PageTable, PageTableFlags as Flags,
        page_table::{PageTableEntry, PageTableLevel},
    },
};

use super::pvh::Range;

unsafe extern "C" {
    static mut boot_pml4: PageTable;
    static _image_start: u8;
    static _text_end: u8;
    static _rodata_end: u8;
    static _image_end: u8;
    static boot_stack: u8;
    static boot_stack_top: u8;
}

const SMALL: u64 = 4096;
const LARGE: u64 = 2 << 20;
const TABLE: Flags = Flags::PRESENT.union(Flags::WRITABLE);

/// Where the kernel image lies in memory.
pub(crate) fn image() -> Range {
    Range { start: (&raw const _image_start).addr() as u64, end: (&raw const _image_end).addr() as u64 }
}

/// The stack that CPU 0 boots on, without its guard page.
pub(crate) fn boot_stack_range() -> Range {
    Range { start: (&raw const boot_stack).addr() as u64 + SMALL, end: (&raw const boot_stack_top).addr() as u64 }
}

/// Whether an address is in the kernel's text.
pub(crate) fn is_text(address: u64) -> bool {
    (image().start..(&raw const _text_end).addr() as u64).contains(&address)
}

/// The page tables, which CPUs change one at a time.
struct Tables;

static TABLES: SpinLock<Tables> = SpinLock::new(Tables);

/// The table an entry points to; made if there is none, and filled with the same mapping in
/// smaller pages if the entry maps one large page.
fn next_table(entry: &mut PageTableEntry) -> &'static mut PageTable {
    if entry.is_unused() || entry.flags().contains(Flags::HUGE_PAGE) {
        let mut table = Box::new(PageTable::new());
        if !entry.is_unused() {
            let flags = entry.flags() - Flags::HUGE_PAGE;
            for (i, small) in table.iter_mut().enumerate() {
                small.set_addr(entry.addr() + i as u64 * SMALL, flags);
            }
        }
        entry.set_addr(PhysAddr::new(core::ptr::from_mut(Box::leak(table)).addr() as u64), TABLE);
    }
    // SAFETY: the entry points to a table that was leaked for it or that boot.s made, in identity
    // mapped memory; the lock on `Tables` makes this the only reference.
    unsafe { &mut *core::ptr::with_exposed_provenance_mut(entry.addr().as_u64() as usize) }
}

impl Tables {
    /// The entry that maps `address` at the level given.
    fn entry(&mut self, address: u64, level: PageTableLevel) -> &'static mut PageTableEntry {
        let address = VirtAddr::new(address);
        // SAFETY: the top table is this module's, and `self` is the only `Tables`.
        let mut table: &'static mut PageTable = unsafe { &mut *core::ptr::addr_of_mut!(boot_pml4) };
        let mut at = PageTableLevel::Four;
        while at != level {
            table = next_table(&mut table[address.page_table_index(at)]);
            at = at.next_lower_level().unwrap_or(level);
        }
        &mut table[address.page_table_index(level)]
    }

    /// Maps what is not mapped of a range, in large pages.
    fn map(&mut self, range: Range, flags: Flags) {
        let mut address = range.start / LARGE * LARGE;
        while address < range.end {
            let entry = self.entry(address, PageTableLevel::Two);
            if entry.is_unused() {
                entry.set_addr(PhysAddr::new(address), flags | Flags::PRESENT | Flags::HUGE_PAGE);
            }
            address += LARGE;
        }
    }

    /// Gives whole small pages other flags.
    fn protect(&mut self, range: Range, flags: Flags) {
        assert!(range.start.is_multiple_of(SMALL) && range.end.is_multiple_of(SMALL));
        for address in (range.start..range.end).step_by(SMALL as usize) {
            self.entry(address, PageTableLevel::One).set_addr(PhysAddr::new(address), flags);
            tlb::flush(VirtAddr::new(address));
        }
    }
}

/// Protects page 0, the kernel image, and what is below the boot stack. Called before other CPUs start; needs the heap.
pub(crate) fn protect_image() {
    let text_end = (&raw const _text_end).addr() as u64;
    let rodata_end = (&raw const _rodata_end).addr() as u64;
    let image = image();
    let mut tables = TABLES.lock();
    tables.protect(Range { start: 0, end: SMALL }, Flags::empty());
    tables.protect(Range { start: image.start, end: text_end }, Flags::PRESENT);
    tables.protect(Range { start: text_end, end: rodata_end }, Flags::PRESENT | Flags::NO_EXECUTE);
    tables.protect(Range { start: rodata_end, end: image.end }, TABLE | Flags::NO_EXECUTE);
    let stack = boot_stack_range().start;
    tables.protect(Range { start: stack - SMALL, end: stack }, Flags::empty());
}

/// Maps memory above 4 GiB; what is below has been mapped by boot.s.
pub(crate) fn map_ram(range: Range) {
    TABLES.lock().map(range, Flags::WRITABLE | Flags::NO_EXECUTE);
}

/// Maps device registers that are not mapped yet, wherever they are.
pub(crate) fn map_device(range: Range) {
    TABLES.lock().map(range, Flags::WRITABLE | Flags::NO_EXECUTE | Flags::NO_CACHE);
}

/// Makes the page at `address` one that faults. Other CPUs may go on using it until they
/// [`forget`] it.
pub(crate) fn make_guard(address: u64) {
    TABLES.lock().protect(Range { start: address, end: address + SMALL }, Flags::empty());
}

/// Drops what this CPU remembers of the mapping of a page.
pub(crate) fn forget(address: u64) {
    tlb::flush(VirtAddr::new(address));
}
