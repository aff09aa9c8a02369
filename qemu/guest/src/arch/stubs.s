// SPDX-License-Identifier: GPL-2.0-only
// Entry points of all 256 interrupt vectors, 16 bytes apart, and what is behind them. Every vector
// has an IST stack, so the code that was interrupted may use its red zone (precompiled `core` does).
// Constants in braces come from trap.rs.

.section .text.stubs, "ax", @progbits

// Vectors 0..32, exceptions and NMI: a full register frame (trap::Frame) for rust_trap, which does not return.
.align 16
.global trap_stubs
trap_stubs:
.set v, 0
.rept 32
    .align 16
    .if (v != 8) && ((v < 10) || (v > 14)) && (v != 17) && (v != 21) && (v != 29) && (v != 30)
    .byte 0x6a, 0x00             // push 0: no error code from the CPU
    .endif
    .byte 0x6a, v                // push the vector
    jmp trap_common
    .set v, v + 1
.endr

trap_common:
    push rax
    push rbx
    push rcx
    push rdx
    push rsi
    push rdi
    push rbp
    push r8
    push r9
    push r10
    push r11
    push r12
    push r13
    push r14
    push r15
    cld
    mov rdi, rsp
    and rsp, -16
    call rust_trap
    ud2

// Vectors 32..256. `push rbp; mov rbp, rsp` first: with the return address that the CPU pushed this
// makes an ordinary stack frame, and backtraces run through the interrupt.
.align 16
.global irq_stubs
irq_stubs:
.set v, 32
.rept 224
    .align 16
    push rbp
    mov rbp, rsp
    push rdi
    .byte 0xbf                   // mov edi, vector
    .long v
    jmp irq_common
    .set v, v + 1
.endr

// 56 bytes are on the stack: the CPU's frame, rbp, rdi.
irq_common:
    cmp byte ptr gs:[{IDLE}], 0
    jne irq_in_idle
    push rax
    push rcx
    push rdx
    push rsi
    push r8
    push r9
    push r10
    push r11
    sub rsp, 520                 // 640 in all: fxsave and the call want 16-byte alignment
    fxsave64 [rsp]
    cld
    inc dword ptr gs:[{IRQ_DEPTH}]
    call rust_irq
    dec dword ptr gs:[{IRQ_DEPTH}]
    fxrstor64 [rsp]
    add rsp, 520
    pop r11
    pop r10
    pop r9
    pop r8
    pop rsi
    pop rdx
    pop rcx
    pop rax
    pop rdi
    pop rbp
    iretq

// The CPU was in percpu::wait_for_interrupt, whose asm block declares every caller-saved register
// lost: nothing to save. The time asleep ends here, before any work is done.
irq_in_idle:
    rdtsc
    shl rdx, 32
    or rax, rdx
    sub rax, qword ptr gs:[{IDLE_SINCE}]
    add qword ptr gs:[{IDLE_TICKS}], rax
    inc qword ptr gs:[{WAKES}]
    mov byte ptr gs:[{IDLE}], 0
    inc dword ptr gs:[{IRQ_DEPTH}]
    sub rsp, 8
    call rust_irq
    dec dword ptr gs:[{IRQ_DEPTH}]
    leave
    iretq

// fn switch_stacks(save: *mut u64 (rdi), next: u64 (rsi)): see sched.rs.
.align 16
.global switch_stacks
switch_stacks:
    push rbp
    push rbx
    push r12
    push r13
    push r14
    push r15
    mov qword ptr [rdi], rsp
    mov rsp, rsi
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbx
    pop rbp
    ret
