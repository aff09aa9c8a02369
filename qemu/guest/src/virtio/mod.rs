// SPDX-License-Identifier: GPL-2.0-only
//! Disks: virtio-blk on PCI, modern (virtio 1) only.
//!
//! `virtio-drivers` finds the devices and is their transport (capabilities, features, status,
//! configuration space). The queues are our own, see [`queue`].

use alloc::{string::String, vec::Vec};

use kernel_shim::{block::Bdev, pr_err, pr_info};
use spin::Once;
use virtio_drivers::transport::{
    DeviceType,
    pci::{bus::PciRoot, virtio_device_type},
};

use crate::arch::{firmware::Firmware, percpu::MAX_DISKS};

pub(crate) mod blk;
mod pci;
pub(crate) mod queue;

/// A disk that was found.
pub(crate) struct FoundDisk {
    /// For the block layer.
    pub(crate) bdev: Bdev,
    /// Queues in use.
    pub(crate) queues: u32,
    /// Requests that each of them holds in flight.
    pub(crate) depth: u32,
}

static DISKS: Once<Vec<FoundDisk>> = Once::new();

/// The disks, by their place on the PCI bus.
pub(crate) fn disks() -> &'static [FoundDisk] {
    DISKS.get().map_or(&[], Vec::as_slice)
}

/// Finds the disks on bus 0 and gets them going. A device that does not work is left out, with a log line.
pub(crate) fn init(firmware: &Firmware) {
    let mut found = Vec::new();
    if let Some(ecam) = pci::Ecam::new(firmware) {
        let mut root = PciRoot::new(ecam);
        let devices: Vec<_> = root
            .enumerate_bus(0)
            .filter(|(_, info)| virtio_device_type(info) == Some(DeviceType::Block))
            .map(|(at, _)| at)
            .collect();
        for at in devices.into_iter().take(MAX_DISKS) {
            match blk::start(&mut root, ecam, at, found.len()) {
                Ok(disk) => found.push(disk),
                Err(why) => pr_err!("virtio-blk at {at}: {why}"),
            }
        }
    }
    for (i, d) in found.iter().enumerate() {
        pr_info!("disk {i}: {} sectors, {} queues of {}", d.bdev.nr_sectors(), d.queues, d.depth);
    }
    DISKS.call_once(|| found);
}

/// Why a device cannot be used.
type Refusal = String;
