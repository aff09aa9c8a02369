// SPDX-License-Identifier: GPL-2.0-only
//! The serial port, the debug console and the way out.
//!
//! The serial port carries the log and the events, a whole line at a time whatever CPU they come from.

use core::{
    arch::asm,
    fmt::{self, Write},
};

use ext4_dio_protocol::{DEBUGCON_PORT, EVENT_PREFIX, EXIT_PORT, Event, ExitCode};
use kernel_shim::sync::SpinLock;
use uart_16550::{Config, Uart16550, backend::PioBackend, spec::registers::LSR};
use x86_64::instructions::port::PortWriteOnly;

use crate::arch::clock;

const COM1: u16 = 0x3f8;

/// The first serial port.
pub(crate) struct Serial(Uart16550<PioBackend>);

static SERIAL: SpinLock<Serial> = SpinLock::new(Serial::new());

impl Serial {
    const fn new() -> Self {
        // SAFETY: every PC has its first serial port there, and nothing else uses it.
        match unsafe { Uart16550::new_port(COM1) } {
            Ok(uart) => Self(uart),
            Err(_) => panic!("0x3f8 is a port"),
        }
    }

    /// A second handle, for whoever has stopped all other CPUs and cannot wait for a lock.
    pub(crate) fn seize() -> Self {
        Self::new()
    }
}

impl Write for Serial {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        self.0.send_bytes_exact(s.as_bytes());
        Ok(())
    }
}

/// What a log line consists of: a time stamp, text, and a line end. Line feeds in the text become stamped lines.
struct Stamped<'a, W> {
    out: &'a mut W,
    at_start: bool,
}

impl<W: Write> Write for Stamped<'_, W> {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for part in s.split_inclusive('\n') {
            if self.at_start {
                let us = clock::now_ns() / 1000;
                write!(self.out, "[{:5}.{:06}] ", us / 1_000_000, us % 1_000_000)?;
            }
            self.out.write_str(part)?;
            self.at_start = part.ends_with('\n');
        }
        Ok(())
    }
}

/// Writes a log line to `out`.
pub(crate) fn log_to(out: &mut Serial, args: fmt::Arguments<'_>) {
    let mut line = Stamped { out, at_start: true };
    // A serial port takes everything; what can fail is a Display in `args`, and then the line is cut short.
    let _ = line.write_fmt(args);
    if !line.at_start {
        let _ = line.out.write_str("\n");
    }
}

/// Writes a log line. Any context.
pub(crate) fn log(args: fmt::Arguments<'_>) {
    log_to(&mut SERIAL.lock(), args);
}

/// Tells the runner something. Allocates; any context that may.
pub(crate) fn emit(event: &Event) {
    match serde_json::to_string(event) {
        Ok(json) => {
            // Serial's write_str does not fail.
            let _ = writeln!(SERIAL.lock(), "{EVENT_PREFIX}{json}");
        }
        Err(e) => log(format_args!("event not sent: {e}")),
    }
}

/// Sends bytes over the debug console, which has no framing: the event before says what they are.
pub(crate) fn debugcon_write(bytes: &[u8]) {
    // SAFETY: reads `bytes`, writes a port behind which is QEMU's debug console or nothing.
    unsafe {
        asm!(
            "rep outsb",
            inout("rcx") bytes.len() => _,
            inout("rsi") bytes.as_ptr() => _,
            in("dx") DEBUGCON_PORT,
            options(nostack, readonly, preserves_flags),
        );
    }
}

/// Sets up the serial port.
pub(crate) fn init() {
    // A port that does not answer as a 16550 should is still the only console there is.
    let _ = SERIAL.lock().0.init(Config::default());
}

/// How long a reader may keep the last words waiting.
const LAST_WORDS_NS: u64 = 5_000_000_000;

/// Ends QEMU with [`ExitCode::qemu_status`], once the serial port has sent what it was given.
pub(crate) fn exit(code: ExitCode) -> ! {
    let mut serial = Serial::seize();
    let start = clock::now_ns();
    while !serial.0.lsr().contains(LSR::TRANSMITTER_EMPTY) && clock::now_ns() - start < LAST_WORDS_NS {
        core::hint::spin_loop();
    }
    // SAFETY: behind the port is isa-debug-exit, or nothing.
    unsafe { PortWriteOnly::<u32>::new(EXIT_PORT).write(code as u32) };
    loop {
        x86_64::instructions::interrupts::disable();
        x86_64::instructions::hlt();
    }
}
