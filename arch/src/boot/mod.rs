//! How a guest gets its first instruction: which image goes where, what lies beside it, what is in the boot CPU's registers.

pub mod gdt;
pub mod linux;
pub mod paging;
pub mod placement;
pub mod pvh;
pub mod registers;
pub mod reset_vector;
