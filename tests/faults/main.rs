// SPDX-License-Identifier: GPL-2.0-only
//! Faults at each place.
