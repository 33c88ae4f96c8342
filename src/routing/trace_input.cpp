#include "routing/trace_input.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <new>
#include <system_error>

#include <zlib.h>

#include <fmt/format.h>

#include "epistle/error.hpp"

namespace epistle {
namespace {

constexpr std::size_t kPackedBytes = std::size_t{256} * 1024;
constexpr std::string_view kGzipMagic = "\x1f\x8b";  // RFC 1952, section 2.3.1
constexpr int kGzipWindowBits = 15 + 16;             // the largest window; +16: gzip members only

[[noreturn]] void fail_open(const std::string& path, const std::string& reason) {
  throw Error(ErrorCode::kNotFound,
              fmt::format("cannot read the trace '{}': {}; give a JSON lines file, plain or gzip", path, reason));
}

}  // namespace

void TraceInput::EndInflate::operator()(z_stream_s* stream) const noexcept {
  inflateEnd(stream);
  delete stream;
}

TraceInput::TraceInput(const std::string& path) : path_(path), packed_(kPackedBytes) {
  std::error_code error;
  // Opening a directory succeeds and only reading it fails, so it is told apart here.
  if (std::filesystem::is_directory(path, error)) fail_open(path, "it is a directory");
  file_.reset(std::fopen(path.c_str(), "rbe"));
  if (!file_) fail_open(path, std::generic_category().message(errno));
  std::setvbuf(file_.get(), nullptr, _IONBF, 0);  // this class has a buffer of its own
  const std::uintmax_t size = std::filesystem::file_size(path, error);
  num_bytes_ = error ? 0 : static_cast<std::int64_t>(size);
  if (fill() && std::string_view(packed_.data(), packed_end_).starts_with(kGzipMagic)) start_inflate();
}

/// Replaces the packed bytes, all of them taken, by those that follow; false at the end of the file.
bool TraceInput::fill() {
  packed_begin_ = 0;
  packed_end_ = std::fread(packed_.data(), 1, packed_.size(), file_.get());
  if (packed_end_ == 0 && std::ferror(file_.get()) != 0) {
    throw Error(ErrorCode::kSystem,
                fmt::format("reading the trace '{}' failed: {}", path_, std::generic_category().message(errno)));
  }
  bytes_read_ += static_cast<std::int64_t>(packed_end_);
  return packed_end_ > 0;
}

void TraceInput::start_inflate() {
  auto stream = std::make_unique<z_stream>();
  if (inflateInit2(stream.get(), kGzipWindowBits) != Z_OK) throw std::bad_alloc();
  inflate_.reset(stream.release());
}

std::size_t TraceInput::read(char* target, std::size_t size) {
  if (!inflate_) {
    if (packed_begin_ == packed_end_ && !fill()) return 0;
    const std::size_t num_copied = std::min(size, packed_end_ - packed_begin_);
    std::memcpy(target, packed_.data() + packed_begin_, num_copied);
    packed_begin_ += num_copied;
    return num_copied;
  }
  inflate_->next_out = reinterpret_cast<Bytef*>(target);
  inflate_->avail_out = static_cast<uInt>(size);
  while (inflate_->avail_out > 0 && damage_.empty()) {
    if (packed_begin_ == packed_end_ && !fill()) {
      if (!between_members_) damage_ = "the gzip data ends too early; the file is truncated, copy or record it again";
      break;
    }
    inflate_more();
  }
  return size - inflate_->avail_out;
}

void TraceInput::inflate_more() {
  const bool behind_a_member = between_members_ && has_member_;
  // zlib waits for a second byte before it looks at the first.
  const bool is_foreign = behind_a_member && packed_[packed_begin_] != kGzipMagic.front();
  inflate_->next_in = reinterpret_cast<Bytef*>(packed_.data() + packed_begin_);
  inflate_->avail_in = static_cast<uInt>(packed_end_ - packed_begin_);
  const int code = is_foreign ? Z_DATA_ERROR : inflate(inflate_.get(), Z_NO_FLUSH);
  packed_begin_ = packed_end_ - inflate_->avail_in;
  between_members_ = code == Z_STREAM_END;
  if (code == Z_STREAM_END) {
    has_member_ = true;
    inflateReset(inflate_.get());
  }
  if (code == Z_OK || code == Z_STREAM_END) return;
  if (code == Z_MEM_ERROR) throw std::bad_alloc();
  if (behind_a_member) {
    damage_ = "damaged or foreign bytes follow the gzip data; copy or record the file again";
  } else {
    damage_ = fmt::format("the gzip data is damaged ({}); copy or record the file again",
                          inflate_->msg != nullptr ? inflate_->msg : "no gzip header");
  }
}

}  // namespace epistle
