#include "balance/load_file.hpp"

#include <cstring>

#include <gtest/gtest.h>

#include "epistle/error.hpp"

#include "support/temp_dir.hpp"
#include "support/trace_files.hpp"

namespace epistle::balance {
namespace {

using test::expect_error;
using test::TempDir;
using Rows = std::vector<std::vector<double>>;

template <typename Number>
std::string npy(const std::string& descr, const std::string& shape, const std::vector<Number>& values,
                bool fortran = false) {
  std::string header =
      "{'descr': '" + descr + "', 'fortran_order': " + (fortran ? "True" : "False") + ", 'shape': " + shape + ", }";
  while ((10 + header.size() + 1) % 64 != 0) header += ' ';
  header += '\n';
  std::string bytes = std::string("\x93NUMPY\x01", 7) + '\0';
  bytes += static_cast<char>(header.size() & 0xff);
  bytes += static_cast<char>(header.size() >> 8);
  bytes += header;
  bytes.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(Number));
  return bytes;
}

TEST(LoadFile, ReadsJson) {
  const TempDir dir;
  const LoadFile file =
      read_load_file(dir.write("l.json", R"({"loads": [[1, 2.5], [3, 4]], "slots": 4, "ranks": 2, "domains": [0, 1],
                              "current": [[0, 1, 0, 1], [[1, 0], [0, -1]]]})"));
  EXPECT_EQ(file.loads, (Rows{{1, 2.5}, {3, 4}}));
  EXPECT_EQ(file.slots, std::vector<std::int32_t>{4});
  EXPECT_EQ(file.num_ranks, 2);
  EXPECT_EQ(file.domains, (std::vector<std::int32_t>{0, 1}));
  EXPECT_EQ(file.current, (std::vector<std::vector<std::int32_t>>{{0, 1, 0, 1}, {1, 0, 0, -1}}));
  const LoadFile one = read_load_file(dir.write("one.json", R"({"loads": [1, 2], "current": null})"));
  EXPECT_EQ(one.loads, (Rows{{1, 2}}));
  EXPECT_TRUE(one.current.empty());
}

TEST(LoadFile, ReadsCsv) {
  const TempDir dir;
  EXPECT_EQ(read_load_file(dir.write("a.csv", "1,2,3\r\n4, 5 ,6e1\n\n")).loads, (Rows{{1, 2, 3}, {4, 5, 60}}));
  EXPECT_EQ(read_load_file(dir.write("b.csv", "e0,e1\n4,5")).loads, (Rows{{4, 5}}));
  EXPECT_EQ(read_load_file(dir.write("c.csv",
                                     "\xef\xbb\xbf"
                                     "1,2\r\n3,4\r\n"))
                .loads,
            (Rows{{1, 2}, {3, 4}}));
}

TEST(LoadFile, WhatHasNoEndingIsToldByWhatIsInIt) {
  const TempDir dir;
  EXPECT_EQ(read_load_file(dir.write("csv", "1,2\n3,4\n")).loads, (Rows{{1, 2}, {3, 4}}));
  EXPECT_EQ(read_load_file(dir.write("npy", npy<double>("<f8", "(2,)", {5, 6}))).loads, (Rows{{5, 6}}));
  EXPECT_EQ(read_load_file(dir.write("json", " \n{\"loads\": [[1, 2]]}")).loads, (Rows{{1, 2}}));
  const auto refuse = [&](const std::string& content, const std::string& what) {
    expect_error(ErrorCode::kCorruptInput, {what}, [&] { (void)read_load_file(dir.write("x", content)); });
  };
  refuse("PK\x03\x04...", "python -m epistle.loads FILE");
  refuse("a,b\n1,2\n", "needs the ending .csv");
  refuse("", "neither JSON nor .npy nor rows of numbers");
  refuse("{\"loads\":\n [1,", "line 2 is not JSON");
}

TEST(LoadFile, ReadsNpy) {
  const TempDir dir;
  const auto read = [&](const std::string& bytes) { return read_load_file(dir.write("l.npy", bytes)).loads; };
  EXPECT_EQ(read(npy<double>("<f8", "(3,)", {1, 2, 3})), (Rows{{1, 2, 3}}));
  EXPECT_EQ(read(npy<float>("<f4", "(2, 2)", {1, 2, 3, 4})), (Rows{{1, 2}, {3, 4}}));
  EXPECT_EQ(read(npy<std::int64_t>("<i8", "(2, 2)", {1, 2, 3, 4}, true)), (Rows{{1, 3}, {2, 4}}));
  EXPECT_EQ(read(npy<std::int32_t>("<i4", "(2, 1, 2)", {1, 2, 3, 4})), (Rows{{4, 6}}));
}

TEST(LoadFile, RefusesWhatIsDamaged) {
  const TempDir dir;
  const auto refuse = [&](const std::string& name, const std::string& content, const std::string& part) {
    SCOPED_TRACE(name + ": " + content.substr(0, 60));
    expect_error(ErrorCode::kCorruptInput, {part}, [&] { (void)read_load_file(dir.write(name, content)); });
  };
  refuse("l.json", "{", "not JSON");
  refuse("l.json", "[1]", "not one JSON object");
  refuse("l.json", "{}", "no \"loads\"");
  refuse("l.json", R"({"loads": []})", "no list of layers");
  refuse("l.json", R"({"loads": [[1, 2], [1]]})", "layer 1 has 1 experts, expected 2");
  refuse("l.json", R"({"loads": [[1, -2]]})", "a load of -2");
  refuse("l.json", R"({"loads": [[1, "a"]]})", "no number");
  refuse("l.json", R"({"loads": [[1]], "slots": 1.5})", "\"slots\" holds 1.5");
  refuse("l.json", R"({"loads": [[1], [1], [1]], "current": [[0], [0]]})", "\"current\" has 2 layers, expected 3");
  refuse("l.csv", "1,2\nx,y\n", "line 2");
  refuse("l.csv", "1,2,\n3,4,\n", "line 1");  // loads that went wrong, and no names of columns
  refuse("l.csv", "", "no loads");
  refuse("l.csv", "1,nan\n", "expected 0 or more");
  refuse("l.npy", "nothing", "not a .npy file");
  refuse("l.npy", npy<double>("<f8", "(3,)", {1, 2}), "the data is cut off");
  refuse("l.npy", npy<double>("<c16", "(1,)", {1, 2}), "numbers of type '<c16'");
  refuse("l.npy", npy<double>("<f8", "(1, 1, 1, 1)", {1}), "4 axes");
  refuse("l.npy", npy<double>("<f8", "(99999999999999999999,)", {1}), "too long");
  expect_error(ErrorCode::kNotFound, {"cannot read the loads"}, [&] { (void)read_load_file(dir.file("none.json")); });
}

}  // namespace
}  // namespace epistle::balance
