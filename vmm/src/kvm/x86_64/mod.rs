//! What a virtual machine of x86-64 needs beside memory and processors.

pub mod cpuid;
pub mod registers;
