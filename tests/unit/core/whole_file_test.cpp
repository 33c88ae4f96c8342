#include "core/whole_file.hpp"

#include <sstream>
#include <string>

#include <gtest/gtest.h>

#include "epistle/error.hpp"

#include "support/temp_dir.hpp"
#include "support/trace_files.hpp"

namespace epistle::test {
namespace {

TEST(WholeFile, IsReadUpToTheBoundAndNotFurther) {
  const TempDir dir;
  const std::string content(200000, 'x');
  const std::string path = dir.write("file", content);
  EXPECT_EQ(read_whole_file(path), content);
  EXPECT_EQ(read_whole_file(path, content.size()), content);
  expect_error(ErrorCode::kCorruptInput, {path, "199999 bytes"},
               [&] { static_cast<void>(read_whole_file(path, content.size() - 1)); });
  // What has no end is not read to it.
  expect_error(ErrorCode::kCorruptInput, {"/dev/zero", "larger than"},
               [] { static_cast<void>(read_whole_file("/dev/zero", 1000)); });
}

TEST(WholeFile, NamesWhatCannotBeRead) {
  const TempDir dir;
  expect_error(ErrorCode::kNotFound, {"cannot open", "none", "No such file"},
               [&] { static_cast<void>(read_whole_file(dir.file("none"))); });
  expect_error(ErrorCode::kCorruptInput, {"cannot be read"}, [&] { static_cast<void>(read_whole_file(dir.file(""))); });
  std::istringstream stream("abc");
  EXPECT_EQ(read_whole_stream(stream, "standard input"), "abc");
}

}  // namespace
}  // namespace epistle::test
