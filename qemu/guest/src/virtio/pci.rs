// SPDX-License-Identifier: GPL-2.0-only
//! What PCI needs that `virtio-drivers` leaves to us: where configuration space is, MSI-X, and the two
//! registers of virtio's common configuration that its transport keeps to itself.

use alloc::format;
use core::{mem::offset_of, ptr::NonNull};

use virtio_drivers::{
    BufferDirection, Hal, PhysAddr,
    transport::pci::{
        VIRTIO_PCI_CAP_COMMON_CFG, VIRTIO_PCI_CAP_NOTIFY_CFG,
        bus::{Cam, ConfigurationAccess, DeviceFunction, PCI_CAP_ID_VNDR, PciRoot},
    },
};

use super::Refusal;
use crate::arch::{firmware::Firmware, paging, pvh::Range};

const PCI_CAP_ID_MSIX: u8 = 0x11;
const MSIX_ENABLE: u32 = 1 << 31;
/// In the first word of the MSI-X capability: entries in the table, less one.
const MSIX_SIZE_SHIFT: u32 = 16;
const MSIX_SIZE_MASK: u32 = 0x7ff;
/// Where messages to the CPUs' local APICs go.
const MSI_ADDRESS: u32 = 0xfee0_0000;

/// Memory-mapped configuration space. The crate's `MmioCam` would do, but `PciRoot` keeps it to itself,
/// and there may be only one of it; MSI-X needs access as well.
#[derive(Clone, Copy)]
pub(super) struct Ecam(u64);

impl Ecam {
    /// The PCI bus, if ACPI says where it is.
    pub(super) fn new(firmware: &Firmware) -> Option<Self> {
        let base = firmware.pci_config?;
        paging::map_device(Range { start: base, end: base + u64::from(Cam::Ecam.size()) });
        Some(Self(base))
    }

    fn register(self, at: DeviceFunction, offset: u8) -> *mut u32 {
        let address = self.0 + u64::from(Cam::Ecam.cam_offset(at, offset & !3));
        core::ptr::with_exposed_provenance_mut(address as usize)
    }
}

impl ConfigurationAccess for Ecam {
    fn read_word(&self, at: DeviceFunction, offset: u8) -> u32 {
        // SAFETY: `new` mapped it all, and `cam_offset` checks that it is inside.
        unsafe { self.register(at, offset).read_volatile() }
    }

    fn write_word(&mut self, at: DeviceFunction, offset: u8, data: u32) {
        // SAFETY: as for reading.
        unsafe { self.register(at, offset).write_volatile(data) }
    }

    unsafe fn unsafe_clone(&self) -> Self {
        *self
    }
}

/// What `virtio-drivers` asks for: nearly nothing, since our queues are not its queues.
pub(super) struct GuestHal;

// SAFETY: `mmio_phys_to_virt` returns the device's registers, identity mapped; memory for DMA is not asked for.
unsafe impl Hal for GuestHal {
    fn dma_alloc(_: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        // "No memory" in the crate's terms.
        (0, NonNull::dangling())
    }

    unsafe fn dma_dealloc(_: PhysAddr, _: NonNull<u8>, _: usize) -> i32 {
        0
    }

    unsafe fn mmio_phys_to_virt(paddr: PhysAddr, size: usize) -> NonNull<u8> {
        registers(paddr, size as u64)
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        buffer.cast::<u8>().addr().get() as u64
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}

fn registers(address: u64, size: u64) -> NonNull<u8> {
    paging::map_device(Range { start: address, end: address + size });
    NonNull::new(core::ptr::with_exposed_provenance_mut(address as usize)).expect("device registers at 0")
}

/// A piece of a base address register, checked against its size.
fn bar_piece(
    root: &mut PciRoot<Ecam>,
    at: DeviceFunction,
    bar: u8,
    offset: u32,
    size: u32,
) -> Result<NonNull<u8>, Refusal> {
    let info = root.bar_info(at, bar).map_err(|e| format!("BAR {bar}: {e}"))?;
    let Some((address, len)) = info.and_then(|b| b.memory_address_size()) else {
        return Err(format!("BAR {bar} is not memory"));
    };
    if address == 0 || u64::from(offset) + u64::from(size) > len {
        return Err(format!("BAR {bar} is too small or has no address"));
    }
    Ok(registers(address + u64::from(offset), u64::from(size)))
}

/// `virtio_pci_common_cfg`.
#[repr(C)]
struct CommonCfg {
    device_feature_select: u32,
    device_feature: u32,
    driver_feature_select: u32,
    driver_feature: u32,
    config_msix_vector: u16,
    num_queues: u16,
    device_status: u8,
    config_generation: u8,
    queue_select: u16,
    queue_size: u16,
    queue_msix_vector: u16,
    queue_enable: u16,
    queue_notify_off: u16,
}

const NO_VECTOR: u16 = 0xffff;

/// A virtio device's MSI-X table and doorbells.
pub(super) struct Interrupts {
    common: NonNull<u8>,
    notify: NonNull<u8>,
    notify_multiplier: u32,
    notify_size: u32,
    table: NonNull<u8>,
    table_entries: u32,
}

impl Interrupts {
    /// Finds them, and switches the device to MSI-X.
    pub(super) fn enable(root: &mut PciRoot<Ecam>, mut ecam: Ecam, at: DeviceFunction) -> Result<Self, Refusal> {
        let (mut common, mut notify, mut msix) = (None, None, None);
        for cap in root.capabilities(at) {
            let word = |n: u8| ecam.read_word(at, cap.offset + 4 * n);
            match (cap.id, (cap.private_header >> 8) as u8) {
                (PCI_CAP_ID_VNDR, VIRTIO_PCI_CAP_COMMON_CFG) if common.is_none() => {
                    common = Some((word(1) as u8, word(2)));
                }
                (PCI_CAP_ID_VNDR, VIRTIO_PCI_CAP_NOTIFY_CFG) if notify.is_none() => {
                    notify = Some((word(1) as u8, word(2), word(3), word(4)));
                }
                (PCI_CAP_ID_MSIX, _) => msix = Some((cap.offset, word(0), word(1))),
                _ => {}
            }
        }
        let (bar, offset) = common.ok_or("no common configuration: not a modern device")?;
        let common = bar_piece(root, at, bar, offset, size_of::<CommonCfg>() as u32)?;
        let (bar, offset, notify_size, notify_multiplier) = notify.ok_or("no doorbells")?;
        let notify = bar_piece(root, at, bar, offset, notify_size)?;
        let (msix_cap, header, table) = msix.ok_or("no MSI-X")?;
        let table_entries = (header >> MSIX_SIZE_SHIFT & MSIX_SIZE_MASK) + 1;
        let table = bar_piece(root, at, (table & 7) as u8, table & !7, table_entries * 16)?;
        ecam.write_word(at, msix_cap, header | MSIX_ENABLE);
        let this = Self { common, notify, notify_multiplier, notify_size, table, table_entries };
        // Changes of its configuration interrupt nobody.
        this.write16(offset_of!(CommonCfg, config_msix_vector), NO_VECTOR);
        Ok(this)
    }

    /// How many queues can have an interrupt of their own.
    pub(super) fn vectors(&self) -> u32 {
        self.table_entries
    }

    fn write16(&self, offset: usize, value: u16) {
        // SAFETY: inside the registers that `enable` checked; aligned by the virtio specification.
        unsafe { self.common.byte_add(offset).cast::<u16>().write_volatile(value) }
    }

    fn read16(&self, offset: usize) -> u16 {
        // SAFETY: as for writing.
        unsafe { self.common.byte_add(offset).cast::<u16>().read_volatile() }
    }

    /// Lets queue `index` interrupt the CPU with `apic_id` at `vector`. Before the queue is enabled.
    pub(super) fn route(&self, index: u16, apic_id: u32, vector: u32) -> Result<(), Refusal> {
        if u32::from(index) >= self.table_entries {
            return Err(format!("MSI-X has {} entries, none for queue {index}", self.table_entries));
        }
        let entry = [MSI_ADDRESS | apic_id << 12, 0, vector, 0];
        for (i, word) in entry.into_iter().enumerate() {
            // SAFETY: `enable` checked that the table has that many entries of four words.
            unsafe { self.table.cast::<u32>().add(4 * usize::from(index) + i).write_volatile(word) };
        }
        self.write16(offset_of!(CommonCfg, queue_select), index);
        self.write16(offset_of!(CommonCfg, queue_msix_vector), index);
        if self.read16(offset_of!(CommonCfg, queue_msix_vector)) == NO_VECTOR {
            return Err(format!("the device has no vector for queue {index}"));
        }
        Ok(())
    }

    /// Queue `index`'s doorbell.
    pub(super) fn doorbell(&self, index: u16) -> Result<NonNull<u16>, Refusal> {
        self.write16(offset_of!(CommonCfg, queue_select), index);
        let offset = u32::from(self.read16(offset_of!(CommonCfg, queue_notify_off))) * self.notify_multiplier;
        if offset + 2 > self.notify_size {
            return Err(format!("doorbell of queue {index} outside of its registers"));
        }
        // SAFETY: inside the registers that `enable` checked.
        Ok(unsafe { self.notify.byte_add(offset as usize) }.cast())
    }
}
