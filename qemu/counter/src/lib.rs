// SPDX-License-Identifier: GPL-2.0-only
//! A plugin of QEMU's translator that counts the instructions a guest executes. At each mark, `xchg %r11, %r11`, which does nothing
//! else, it prints how many there were since the mark before, and begins anew:
//!
//! ```text
//! MARK,3,user=17,kernel=4000
//! ```
//!
//! An instruction in the lower half of the addresses is a user's: in a kernel that lives there itself all of them are.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering::Relaxed};

/// QEMU's interface: 1 up to QEMU 8, 2 from there on. What is used here is the same in both.
const API: c_int = match option_env!("EXT4_DIO_PLUGIN_API") {
    Some(s) => (s.as_bytes()[0] - b'0') as c_int,
    None => 1,
};

/// The newest interface in which the bytes of an instruction are lent, not copied.
const LENT: c_int = 2;

/// `xchg %r11, %r11`.
const MARK: [u8; 3] = [0x4d, 0x87, 0xdb];

/// Looked up by QEMU.
#[unsafe(no_mangle)]
pub static qemu_plugin_version: c_int = API;

/// The begin of `qemu_info_t`.
#[repr(C)]
#[derive(Debug)]
pub struct Info {
    target_name: *const c_char,
    oldest: c_int,
    version: c_int,
}

type Exec = extern "C" fn(c_uint, *mut c_void);

// SAFETY: as `qemu-plugin.h` declares them, but for the one that says so.
unsafe extern "C" {
    fn qemu_plugin_register_vcpu_tb_trans_cb(id: u64, f: extern "C" fn(u64, *mut c_void));
    fn qemu_plugin_register_vcpu_tb_exec_cb(block: *mut c_void, f: Exec, flags: c_int, data: *mut c_void);
    fn qemu_plugin_register_vcpu_insn_exec_cb(insn: *mut c_void, f: Exec, flags: c_int, data: *mut c_void);
    fn qemu_plugin_tb_n_insns(block: *const c_void) -> usize;
    fn qemu_plugin_tb_vaddr(block: *const c_void) -> u64;
    fn qemu_plugin_tb_get_insn(block: *const c_void, index: usize) -> *mut c_void;
    /// Takes the first argument alone, and returns a pointer, up to interface [`LENT`].
    fn qemu_plugin_insn_data(insn: *const c_void, to: *mut u8, len: usize) -> usize;
    fn qemu_plugin_insn_size(insn: *const c_void) -> usize;
}

static USER: AtomicU64 = AtomicU64::new(0);
static KERNEL: AtomicU64 = AtomicU64::new(0);
static MARKS: AtomicU64 = AtomicU64::new(0);
static VERSION: AtomicI32 = AtomicI32::new(0);

/// A block of instructions begins. `data` is not a pointer: how many there are, and in the lowest bit whether a user's.
extern "C" fn executed(_cpu: c_uint, data: *mut c_void) {
    let data = data as u64;
    if data & 1 == 1 { &USER } else { &KERNEL }.fetch_add(data >> 1, Relaxed);
}

/// A mark is executed.
extern "C" fn marked(_cpu: c_uint, _data: *mut c_void) {
    let (user, kernel) = (USER.swap(0, Relaxed), KERNEL.swap(0, Relaxed));
    eprintln!("MARK,{},user={user},kernel={kernel}", MARKS.fetch_add(1, Relaxed));
}

/// # Safety
///
/// `insn` is an instruction of the block that is being translated.
unsafe fn is_mark(insn: *const c_void) -> bool {
    let mut copy = [0u8; 3];
    // SAFETY: as this function.
    if unsafe { qemu_plugin_insn_size(insn) } != copy.len() {
        return false;
    }
    // SAFETY: as this function; three bytes may be copied. Interfaces up to `LENT` leave the further arguments alone.
    let data = unsafe { qemu_plugin_insn_data(insn, copy.as_mut_ptr(), copy.len()) };
    if VERSION.load(Relaxed) <= LENT {
        // SAFETY: a pointer to the instruction, which is three bytes long.
        copy = unsafe { (data as *const [u8; 3]).read_unaligned() };
    }
    copy == MARK
}

/// A block of instructions has been translated.
extern "C" fn translated(_id: u64, block: *mut c_void) {
    // SAFETY: QEMU lends the block for the length of this call.
    unsafe {
        let n = qemu_plugin_tb_n_insns(block);
        let user = qemu_plugin_tb_vaddr(block) >> 47 == 0;
        let data = (n << 1 | usize::from(user)) as *mut c_void;
        qemu_plugin_register_vcpu_tb_exec_cb(block, executed, 0, data);
        for index in 0..n {
            let insn = qemu_plugin_tb_get_insn(block, index);
            if is_mark(insn) {
                qemu_plugin_register_vcpu_insn_exec_cb(insn, marked, 0, std::ptr::null_mut());
            }
        }
    }
}

/// Called by QEMU when it has loaded the plugin.
///
/// # Safety
///
/// `info` is QEMU's description of itself, or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qemu_plugin_install(
    id: u64,
    info: *const Info,
    _argc: c_int,
    _argv: *const *const c_char,
) -> c_int {
    // SAFETY: as this function.
    let version = unsafe { info.as_ref() }.map_or(API, |info| info.version);
    VERSION.store(version, Relaxed);
    // SAFETY: `translated` is what QEMU calls with its blocks.
    unsafe { qemu_plugin_register_vcpu_tb_trans_cb(id, translated) };
    0
}
