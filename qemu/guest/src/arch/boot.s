// SPDX-License-Identifier: GPL-2.0-only
// From QEMU's PVH entry (32-bit, paging off) to rust_start in long mode, and from an application
// processor's start-up vector (16-bit) to rust_ap_start. Intel syntax.

// XEN_ELFNOTE_PHYS32_ENTRY: with it QEMU's -kernel takes an ELF64 file directly.
.section .note.pvh, "a", @note
.align 4
.long 4, 8, 18
.asciz "Xen"
.quad pvh_start

.section .boot, "ax", @progbits
.code32
.global pvh_start
pvh_start:
    cli
    cld
    mov dword ptr [boot_info], ebx
    // Identity map of the first 4 GiB in 2 MiB pages; paging.rs adds the rest.
    mov eax, offset boot_pdpt
    or eax, 3
    mov dword ptr [boot_pml4], eax
    mov edi, offset boot_pdpt
    mov eax, offset boot_pd
    or eax, 3
    mov ecx, 4
1:  mov dword ptr [edi], eax
    add eax, 4096
    add edi, 8
    dec ecx
    jnz 1b
    mov edi, offset boot_pd
    mov eax, 0x83
    mov ecx, 2048
2:  mov dword ptr [edi], eax
    add eax, 0x200000
    add edi, 8
    dec ecx
    jnz 2b
    mov esp, offset boot_stack_top
    mov esi, offset bsp_entry64

// esp: a stack; esi: where to go in long mode.
enter_long:
    mov eax, cr4
    or eax, 0x620                // PAE, OSFXSR, OSXMMEXCPT
    mov cr4, eax
    mov eax, offset boot_pml4
    mov cr3, eax
    mov ecx, 0xc0000080          // EFER
    rdmsr
    or eax, 0x900                // LME, NXE
    wrmsr
    mov eax, cr0
    and eax, 0x9ffffff3          // caches on, no TS, no EM
    or eax, 0x80010023           // PG, WP, NE, MP, PE
    mov cr0, eax
    lgdt [boot_gdtr]
    push 0x08
    mov eax, offset long_entry
    push eax
    retf

.code64
long_entry:
    mov eax, 0x10
    mov ds, ax
    mov es, ax
    mov ss, ax
    xor eax, eax
    mov fs, ax
    mov gs, ax
    mov esp, esp                 // clears the upper halves
    mov esi, esi
    xor ebp, ebp                 // where backtraces end
    jmp rsi

bsp_entry64:
    call rust_start
    ud2

ap_entry64:
    mov rsp, qword ptr [ap_stack]
    mov rdi, qword ptr [ap_arg]
    call rust_ap_start
    ud2

// Copied to AP_TRAMPOLINE (0x8000), which the start-up IPI names; CS base is there.
.code16
.global ap_trampoline, ap_trampoline_end
ap_trampoline:
    cli
    cld
    xor ax, ax
    mov ds, ax
    .byte 0x66, 0x0f, 0x01, 0x16 // lgdt, 32-bit operand, [disp16]
    .word 0x8000 + (trampoline_gdtr - ap_trampoline)
    mov eax, cr0
    or eax, 1
    mov cr0, eax
    .byte 0x66, 0xea             // far jump to 0x18:ap_entry32
    .long ap_entry32
    .word 0x18
trampoline_gdtr:
    .word 31
    .long boot_gdt
ap_trampoline_end:

.code32
ap_entry32:
    mov ax, 0x10
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov esp, offset ap_boot_stack_top
    mov esi, offset ap_entry64
    jmp enter_long
.code64

.section .data
.align 16
boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff     // 0x08 64-bit code
    .quad 0x00cf93000000ffff     // 0x10 data
    .quad 0x00cf9b000000ffff     // 0x18 32-bit code
boot_gdtr:
    .word 31
    .quad boot_gdt
.align 8
.global boot_info, ap_stack, ap_arg
boot_info: .quad 0               // physical address of the PVH start info
ap_stack:  .quad 0               // for the processor being started: top of its stack
ap_arg:    .quad 0               // and rust_ap_start's argument

.section .bss
.align 4096
.global boot_pml4, boot_stack, boot_stack_top
boot_pml4: .skip 4096
boot_pdpt: .skip 4096
boot_pd:   .skip 16384
boot_stack: .skip 131072
boot_stack_top:
ap_boot_stack: .skip 256
ap_boot_stack_top:
