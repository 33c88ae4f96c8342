// What the process must have in order before it opens a file or writes to one.
#pragma once

namespace epistle::cli {

/// Opens descriptors 0 to 2 where they are closed: no file or socket of the library may become one of them, because
/// whatever is printed goes there. A closed standard output becomes one that cannot be written, here and in the ranks
/// that inherit it, so that what is lost is an error and not a success.
void open_standard_streams() noexcept;

/// Makes writing beyond the limit on file sizes (ulimit -f) an error of the write instead of the end of the process.
/// Programs that this one starts get the default back.
void report_file_size_limit() noexcept;

}  // namespace epistle::cli
