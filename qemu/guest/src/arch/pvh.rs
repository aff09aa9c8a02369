// SPDX-License-Identifier: GPL-2.0-only
//! What QEMU's PVH boot hands over (Xen's `hvm_start_info`): memory map, command line, the module
//! given with `-initrd`, and where ACPI's root pointer is. All of it is copied out of memory that
//! nobody reserved, except the module, which [`BootInfo::module`] tells the heap to leave alone.

use core::ffi::CStr;

unsafe extern "C" {
    static boot_info: u64;
}

const MAGIC: u32 = 0x336e_c578;
const MAX_REGIONS: usize = 64;
const MAX_COMMAND_LINE: usize = 2048;

#[repr(C)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    nr_modules: u32,
    modlist_paddr: u64,
    cmdline_paddr: u64,
    rsdp_paddr: u64,
    memmap_paddr: u64,
    memmap_entries: u32,
    reserved: u32,
}

#[repr(C)]
struct Module {
    paddr: u64,
    size: u64,
    cmdline_paddr: u64,
    reserved: u64,
}

/// An entry of the memory map.
#[repr(C)]
#[derive(Clone, Copy)]
struct MemmapEntry {
    addr: u64,
    size: u64,
    kind: u32,
    reserved: u32,
}

/// `MemmapEntry::kind` of ordinary memory.
const RAM: u32 = 1;

/// Half-open range of physical addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Range {
    /// First byte.
    pub(crate) start: u64,
    /// First byte behind.
    pub(crate) end: u64,
}

/// The hand-over, checked and copied.
pub(crate) struct BootInfo {
    ram: [Range; MAX_REGIONS],
    nr_ram: usize,
    command_line: [u8; MAX_COMMAND_LINE],
    command_line_len: usize,
    /// Physical address of ACPI's RSDP, 0 if QEMU did not say.
    pub(crate) rsdp: u64,
    /// The boot module, empty if there is none.
    pub(crate) module: Range,
}

impl BootInfo {
    /// Reads it. Called once, before the heap takes memory.
    pub(crate) fn read() -> Self {
        let mut info = Self {
            ram: [Range::default(); MAX_REGIONS],
            nr_ram: 0,
            command_line: [0; MAX_COMMAND_LINE],
            command_line_len: 0,
            rsdp: 0,
            module: Range::default(),
        };
        // SAFETY: pvh_start stored the address that QEMU passed in ebx; the PVH ABI says it is a
        // hvm_start_info, whose pointers are physical addresses below 4 GiB, mapped as they are.
        unsafe {
            let start = &*core::ptr::with_exposed_provenance::<StartInfo>(boot_info as usize);
            assert!(start.magic == MAGIC && start.version >= 1, "not booted by PVH with a memory map");
            let map = core::slice::from_raw_parts(
                core::ptr::with_exposed_provenance::<MemmapEntry>(start.memmap_paddr as usize),
                start.memmap_entries as usize,
            );
            for e in map.iter().filter(|e| e.kind == RAM).take(MAX_REGIONS) {
                info.ram[info.nr_ram] = Range { start: e.addr, end: e.addr.saturating_add(e.size) };
                info.nr_ram += 1;
            }
            if start.cmdline_paddr != 0 {
                let line = CStr::from_ptr(core::ptr::with_exposed_provenance(start.cmdline_paddr as usize)).to_bytes();
                assert!(line.len() <= MAX_COMMAND_LINE, "kernel command line longer than {MAX_COMMAND_LINE} bytes");
                info.command_line[..line.len()].copy_from_slice(line);
                info.command_line_len = line.len();
            }
            if start.nr_modules > 0 {
                let m = &*core::ptr::with_exposed_provenance::<Module>(start.modlist_paddr as usize);
                info.module = Range { start: m.paddr, end: m.paddr + m.size };
            }
            info.rsdp = start.rsdp_paddr;
        }
        info
    }

    /// Ordinary memory.
    pub(crate) fn ram(&self) -> &[Range] {
        &self.ram[..self.nr_ram]
    }

    /// The command line; bytes that are not UTF-8 make it empty.
    pub(crate) fn command_line(&self) -> &str {
        core::str::from_utf8(&self.command_line[..self.command_line_len]).unwrap_or("")
    }

    /// The boot module's bytes.
    pub(crate) fn module(&self) -> &'static [u8] {
        let len = (self.module.end - self.module.start) as usize;
        if len == 0 {
            return &[];
        }
        // SAFETY: QEMU loaded it there, it is mapped, and the heap leaves the range alone.
        unsafe { core::slice::from_raw_parts(core::ptr::with_exposed_provenance(self.module.start as usize), len) }
    }
}
