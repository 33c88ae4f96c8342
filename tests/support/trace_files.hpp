// Trace files for tests: made in a folder of the test, or recorded ones where they are at hand.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <functional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include <zlib.h>

#include <gtest/gtest.h>

#include "epistle/error.hpp"

#include "support/temp_dir.hpp"

namespace epistle::test {

/// One gzip member.
inline std::string gzip(std::string_view content) {
  constexpr int kGzipWindowBits = 15 + 16;  // +16: a gzip header instead of zlib's
  constexpr int kDefaultMemoryLevel = 8;
  z_stream stream{};
  if (deflateInit2(&stream, Z_BEST_SPEED, Z_DEFLATED, kGzipWindowBits, kDefaultMemoryLevel, Z_DEFAULT_STRATEGY) !=
      Z_OK) {
    throw std::runtime_error("deflateInit2 failed");
  }
  std::string packed(deflateBound(&stream, static_cast<uLong>(content.size())), '\0');
  std::string input(content);
  stream.next_in = reinterpret_cast<Bytef*>(input.data());
  stream.avail_in = static_cast<uInt>(input.size());
  stream.next_out = reinterpret_cast<Bytef*>(packed.data());
  stream.avail_out = static_cast<uInt>(packed.size());
  const int code = deflate(&stream, Z_FINISH);
  packed.resize(stream.total_out);
  deflateEnd(&stream);
  if (code != Z_STREAM_END) throw std::runtime_error("deflate failed");
  return packed;
}

/// The error that `action` throws has this code and these parts in its message.
inline void expect_error(ErrorCode code, const std::vector<std::string>& parts, const std::function<void()>& action) {
  try {
    action();
    ADD_FAILURE() << "nothing was thrown, expected " << to_string(code);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    for (const std::string& part : parts) {
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << "no '" << part << "' in: " << error.what();
    }
  }
}

/// Recorded traces; empty where this machine has none.
inline std::vector<std::string> recorded_traces() {
  const char* const from_environment = std::getenv("EPISTLE_SHARED_DIR");
  const std::filesystem::path shared = from_environment != nullptr
                                           ? std::filesystem::path(from_environment)
                                           : std::filesystem::path(EPISTLE_SOURCE_DIR).parent_path() / "shared";
  std::vector<std::string> paths;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(shared / "data" / "traces", error)) {
    if (entry.path().string().ends_with(".jsonl.gz")) paths.push_back(entry.path().string());
  }
  return paths;
}

}  // namespace epistle::test
