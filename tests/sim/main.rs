// SPDX-License-Identifier: GPL-2.0-only
//! Worlds under the scheduler of the `sim` back end.
