//! Binds the linked DuckDB library at its first use instead of at every start.
//!
//! The prebuilt library has 42 000 symbols that the loader looks up before `main`: 15 ms, for `--help` and `status` as
//! much as for a join. The functions of DuckDB's C interface that the `duckdb` crate calls are therefore defined here, each
//! as one jump through [`ENTRIES`]. Every entry begins as [`bind_and_jump`], which opens the library, puts the function's
//! address in its place and goes on there: from then on a call costs one jump more than without.
//!
//! A function missing from this list is no fault: the linker then takes it from the library, which is loaded at the start
//! as ever (a story sees to it that this does not happen unseen). Where the library's place is not another system's than
//! Linux on x86-64, this file is left out and the library is linked the usual way.

use std::ffi::{CStr, c_void};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

/// As the linker finds it, and with the same run path (`build.rs`).
const LIBRARY: &CStr = c"libduckdb.so";

macro_rules! bound_at_first_use {
    ($($name:ident)*) => {
        /// The place of each function in [`ENTRIES`].
        #[expect(non_camel_case_types, reason = "named as the functions are")]
        #[derive(Clone, Copy)]
        #[repr(usize)]
        enum Place { $($name),* }

        const NAMES: [&str; COUNT] = [$(concat!(stringify!($name), "\0")),*];
        const COUNT: usize = [$(Place::$name),*].len();

        /// Where each function is, or [`bind_and_jump`] as long as nobody called it.
        static ENTRIES: [AtomicPtr<c_void>; COUNT] = [$({
            let _ = Place::$name;
            AtomicPtr::new(bind_and_jump as *mut c_void)
        }),*];

        $(
            // SAFETY: jumps with all registers but r11, which no callee expects anything in, as they were.
            #[unsafe(naked)]
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $name() {
                core::arch::naked_asm!(
                    "mov r11d, {place}",
                    "jmp qword ptr [rip + {entries} + 8 * {place}]",
                    place = const Place::$name as usize,
                    entries = sym ENTRIES,
                )
            }
        )*
    };
}

bound_at_first_use! {
    duckdb_array_type_child_type duckdb_bind_blob duckdb_bind_boolean duckdb_bind_date duckdb_bind_decimal
    duckdb_bind_double duckdb_bind_float duckdb_bind_hugeint duckdb_bind_int16 duckdb_bind_int32 duckdb_bind_int64
    duckdb_bind_int8 duckdb_bind_interval duckdb_bind_null duckdb_bind_time duckdb_bind_timestamp
    duckdb_bind_uhugeint duckdb_bind_uint16 duckdb_bind_uint32 duckdb_bind_uint64 duckdb_bind_uint8
    duckdb_bind_varchar_length duckdb_clear_bindings duckdb_close duckdb_column_count duckdb_column_logical_type
    duckdb_column_name duckdb_connect duckdb_create_config duckdb_data_chunk_get_size duckdb_data_chunk_to_arrow
    duckdb_destroy_arrow_options duckdb_destroy_config duckdb_destroy_data_chunk duckdb_destroy_error_data
    duckdb_destroy_extracted duckdb_destroy_logical_type duckdb_destroy_prepare duckdb_destroy_result
    duckdb_disconnect duckdb_error_data_error_type duckdb_error_data_has_error duckdb_error_data_message
    duckdb_execute_prepared duckdb_execute_prepared_streaming duckdb_extract_statements
    duckdb_extract_statements_error duckdb_fetch_chunk duckdb_free duckdb_get_type_id duckdb_interrupt
    duckdb_list_type_child_type duckdb_map_type_key_type duckdb_map_type_value_type duckdb_nparams duckdb_open_ext
    duckdb_parameter_name duckdb_prepare_error duckdb_prepare_extracted_statement
    duckdb_prepared_statement_column_count duckdb_prepared_statement_column_logical_type
    duckdb_prepared_statement_type duckdb_query duckdb_result_error duckdb_result_get_arrow_options
    duckdb_rows_changed duckdb_set_config duckdb_struct_type_child_count duckdb_struct_type_child_type
    duckdb_to_arrow_schema duckdb_union_type_member_count duckdb_union_type_member_type
}

/// Finds the function of the place in r11 and goes on there, with every register that may hold an argument as it was.
///
/// # Safety
/// Called by jumps from the functions above alone.
#[unsafe(naked)]
unsafe extern "C" fn bind_and_jump() {
    core::arch::naked_asm!(
        "push rbp",
        "mov rbp, rsp",
        "push rdi",
        "push rsi",
        "push rdx",
        "push rcx",
        "push r8",
        "push r9",
        "sub rsp, 128",
        "movups [rsp], xmm0",
        "movups [rsp + 16], xmm1",
        "movups [rsp + 32], xmm2",
        "movups [rsp + 48], xmm3",
        "movups [rsp + 64], xmm4",
        "movups [rsp + 80], xmm5",
        "movups [rsp + 96], xmm6",
        "movups [rsp + 112], xmm7",
        "mov rdi, r11",
        "call {bind}",
        "mov r11, rax",
        "movups xmm0, [rsp]",
        "movups xmm1, [rsp + 16]",
        "movups xmm2, [rsp + 32]",
        "movups xmm3, [rsp + 48]",
        "movups xmm4, [rsp + 64]",
        "movups xmm5, [rsp + 80]",
        "movups xmm6, [rsp + 96]",
        "movups xmm7, [rsp + 112]",
        "add rsp, 128",
        "pop r9",
        "pop r8",
        "pop rcx",
        "pop rdx",
        "pop rsi",
        "pop rdi",
        "pop rbp",
        "jmp r11",
        bind = sym bind,
    )
}

/// The address of the function in `place`, from now on in [`ENTRIES`].
extern "C" fn bind(place: usize) -> *mut c_void {
    let name = CStr::from_bytes_with_nul(NAMES[place].as_bytes()).expect("each name ends with a zero");
    // SAFETY: the handle is an open library's, which is never closed; the name ends with a zero.
    let found = unsafe { libc::dlsym(library(), name.as_ptr()) };
    if found.is_null() {
        without_duckdb(&format!("it has no {}", NAMES[place].trim_end_matches('\0')));
    }
    ENTRIES[place].store(found, Ordering::Release);
    found
}

/// Opens the library, which takes its time, for whoever calls into it soon and waits for something else meanwhile.
pub(super) fn open() {
    library();
}

fn library() -> *mut c_void {
    struct Handle(*mut c_void);
    // SAFETY: a handle may be used by any thread; it is no memory of ours.
    unsafe impl Send for Handle {}
    unsafe impl Sync for Handle {}
    static OPEN: OnceLock<Handle> = OnceLock::new();
    let open = || {
        // SAFETY: the name ends with a zero; the library's own initialisers are what the loader would run as well.
        Handle(unsafe { libc::dlopen(LIBRARY.as_ptr(), libc::RTLD_LAZY | libc::RTLD_LOCAL) })
    };
    let handle = OPEN.get_or_init(open).0;
    if handle.is_null() {
        without_duckdb(&last_refusal());
    }
    handle
}

fn last_refusal() -> String {
    // SAFETY: the text belongs to this thread and lives until its next call of this family.
    unsafe {
        let text = libc::dlerror();
        if text.is_null() { "no reason given".to_owned() } else { CStr::from_ptr(text).to_string_lossy().into_owned() }
    }
}

/// A caller in C has no way to be told: what the loader does at the start of a program without its library, but said.
fn without_duckdb(why: &str) -> ! {
    eprintln!("error: DuckDB's library cannot be used: {why}");
    eprintln!(
        "  it is looked for where this program was built against it, then in LD_LIBRARY_PATH; `make build` fetches it"
    );
    std::process::exit(127);
}
