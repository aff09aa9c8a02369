// SPDX-License-Identifier: GPL-2.0-only
//! What ACPI's static tables tell: CPUs, HPET, PM timer. The `acpi` crate parses them, without its
//! `alloc` feature, which needs a nightly compiler.

use core::ptr::NonNull;

use acpi::{
    AcpiTables, Handler, HpetInfo, PciAddress, RawPhysicalMapping,
    rsdp::Rsdp,
    sdt::{
        fadt::Fadt,
        madt::{Madt, MadtEntry},
        mcfg::Mcfg,
    },
};

use super::percpu::MAX_CPUS;

/// What the tables told.
pub(crate) struct Firmware {
    /// Local APIC ids of the CPUs that may be started.
    apic_ids: [u32; MAX_CPUS],
    nr_cpus: usize,
    /// CPUs that there was no room for.
    pub(crate) cpus_left_out: usize,
    /// Where the HPET's registers are.
    pub(crate) hpet: Option<usize>,
    /// I/O port of the PM timer.
    pub(crate) pm_timer: Option<u16>,
    /// Where PCI's memory-mapped configuration space starts, from bus 0 on.
    pub(crate) pci_config: Option<u64>,
}

impl Firmware {
    /// Reads the tables. `rsdp` is the root pointer's address, 0 to look for it where a BIOS puts it.
    pub(crate) fn read(rsdp: u64) -> Self {
        // SAFETY: QEMU passes the address of an RSDP or nothing, the tables are in memory that the
        // memory map reserves, and all of it is identity mapped.
        let tables = unsafe {
            let rsdp = match rsdp {
                0 => Rsdp::search_for_on_bios(Identity).expect("no ACPI root pointer").raw().physical_start(),
                address => address as usize,
            };
            AcpiTables::from_rsdp(Identity, rsdp).expect("ACPI tables")
        };
        let mut found = Self {
            apic_ids: [0; MAX_CPUS],
            nr_cpus: 0,
            cpus_left_out: 0,
            hpet: None,
            pm_timer: None,
            pci_config: None,
        };
        let madt = tables.find_table::<Madt>().expect("no MADT among the ACPI tables");
        for entry in madt.get().entries() {
            match entry {
                MadtEntry::LocalApic(e) if e.flags & 1 != 0 => found.add_cpu(u32::from(e.apic_id)),
                MadtEntry::LocalX2Apic(e) if e.flags & 1 != 0 => found.add_cpu(e.x2apic_id),
                _ => {}
            }
        }
        found.hpet = HpetInfo::new(&tables).ok().map(|h| h.base_address);
        found.pm_timer = tables
            .find_table::<Fadt>()
            .and_then(|f| f.pm_timer_block().ok().flatten())
            .and_then(|block| u16::try_from(block.address).ok());
        found.pci_config = tables.find_table::<Mcfg>().and_then(|mcfg| {
            let segment = mcfg.entries().iter().find(|e| e.pci_segment_group == 0 && e.bus_number_start == 0)?;
            Some(segment.base_address)
        });
        found
    }

    fn add_cpu(&mut self, apic_id: u32) {
        // An xAPIC can name ids up to 254.
        if self.nr_cpus < MAX_CPUS && apic_id < 255 {
            self.apic_ids[self.nr_cpus] = apic_id;
            self.nr_cpus += 1;
        } else {
            self.cpus_left_out += 1;
        }
    }

    /// Local APIC ids of all usable CPUs, the one this runs on among them.
    pub(crate) fn apic_ids(&self) -> &[u32] {
        &self.apic_ids[..self.nr_cpus]
    }
}

/// Physical addresses are virtual ones. The static tables need nothing else of the trait.
#[derive(Clone)]
struct Identity;

impl Handler for Identity {
    unsafe fn map_physical_region<T>(&self, physical_address: usize, size: usize) -> RawPhysicalMapping<T> {
        let start = NonNull::new(core::ptr::with_exposed_provenance_mut(physical_address)).expect("an ACPI table at 0");
        // SAFETY: the crate asks once per table and unmaps nothing here.
        unsafe { RawPhysicalMapping::new(physical_address, start, size, size) }
    }

    unsafe fn unmap_physical_region<T>(&self, _: RawPhysicalMapping<T>) {}

    fn read_u8(&self, _: usize) -> u8 {
        unused()
    }
    fn read_u16(&self, _: usize) -> u16 {
        unused()
    }
    fn read_u32(&self, _: usize) -> u32 {
        unused()
    }
    fn read_u64(&self, _: usize) -> u64 {
        unused()
    }
    fn write_u8(&self, _: usize, _: u8) {
        unused()
    }
    fn write_u16(&self, _: usize, _: u16) {
        unused()
    }
    fn write_u32(&self, _: usize, _: u32) {
        unused()
    }
    fn write_u64(&self, _: usize, _: u64) {
        unused()
    }
    fn read_io_u8(&self, _: u16) -> u8 {
        unused()
    }
    fn read_io_u16(&self, _: u16) -> u16 {
        unused()
    }
    fn read_io_u32(&self, _: u16) -> u32 {
        unused()
    }
    fn write_io_u8(&self, _: u16, _: u8) {
        unused()
    }
    fn write_io_u16(&self, _: u16, _: u16) {
        unused()
    }
    fn write_io_u32(&self, _: u16, _: u32) {
        unused()
    }
    fn read_pci_u8(&self, _: PciAddress, _: u16) -> u8 {
        unused()
    }
    fn read_pci_u16(&self, _: PciAddress, _: u16) -> u16 {
        unused()
    }
    fn read_pci_u32(&self, _: PciAddress, _: u16) -> u32 {
        unused()
    }
    fn write_pci_u8(&self, _: PciAddress, _: u16, _: u8) {
        unused()
    }
    fn write_pci_u16(&self, _: PciAddress, _: u16, _: u16) {
        unused()
    }
    fn write_pci_u32(&self, _: PciAddress, _: u16, _: u32) {
        unused()
    }
    fn nanos_since_boot(&self) -> u64 {
        unused()
    }
    fn stall(&self, _: u64) {
        unused()
    }
    fn sleep(&self, _: u64) {
        unused()
    }
}

fn unused() -> ! {
    panic!("reading ACPI's static tables needs no device access")
}
