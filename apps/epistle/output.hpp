// Where results go.
#pragma once

#include <string>
#include <string_view>

#include "epistle/error.hpp"

namespace epistle::cli {

/// The target that stands for standard output.
inline constexpr std::string_view kStdout = "-";

/// Writes to standard output. Throws kSystem where it does not take all of it.
void print(std::string_view text);

/// Writes "epistle: error: " and `message` to standard error, as one line.
void print_error(std::string_view message) noexcept;

/// What somebody typed, for a message: a few dozen characters of it.
[[nodiscard]] std::string shortened(std::string_view text);

/// The message of an error without the name of its code, for a new error around it.
[[nodiscard]] std::string reason_of(const Error& error);

/// This command with its arguments, as a shell would take them. Without the folder of the program, which says nothing.
[[nodiscard]] std::string command_line();

/// Throws kSystem where write_output to `target` cannot work: better before a long work than behind it.
void check_output(const std::string& target);

/// Writes `text` and a newline to the file `target`, or to standard output for "-". A regular file is written whole or
/// not at all: it is replaced once its content is on the disk, and stays as it was where that fails. Throws kSystem.
void write_output(const std::string& target, std::string_view text);

}  // namespace epistle::cli
