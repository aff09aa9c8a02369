// SPDX-License-Identifier: GPL-2.0-only
//! See the head of `lib.rs`.
#![no_main]

ext4_dio_fuzz::target!(MapBlocks);
