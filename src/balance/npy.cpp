#include "balance/npy.hpp"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <string>

#include <fmt/format.h>

#include "epistle/error.hpp"

#include "topology/memory.hpp"

namespace epistle::balance {
namespace {

// https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
constexpr std::string_view kMagic = "\x93NUMPY";
constexpr std::size_t kVersionEnd = 8;
constexpr std::int64_t kMaxValues = std::int64_t{1} << 27;  // a gigabyte as doubles

class NpyParser {
 public:
  NpyParser(std::string_view bytes, std::string_view name) : bytes_(bytes), name_(name) {}

  [[nodiscard]] NpyArray parse() {
    if (!bytes_.starts_with(kMagic) || bytes_.size() < kVersionEnd + 2) fail("not a .npy file");
    const int version = static_cast<unsigned char>(bytes_[kMagic.size()]);
    if (version < 1 || version > 3) fail(fmt::format("version {} of the format, expected 1 to 3", version));
    const std::size_t length_bytes = version == 1 ? 2 : 4;
    const std::size_t header_begin = kVersionEnd + length_bytes;
    if (bytes_.size() < header_begin) fail("the header is cut off");
    std::size_t header_size = 0;
    for (std::size_t byte = 0; byte < length_bytes; ++byte) {
      header_size |= std::size_t{static_cast<unsigned char>(bytes_[kVersionEnd + byte])} << (8 * byte);
    }
    if (bytes_.size() - header_begin < header_size) fail("the header is cut off");
    header_ = bytes_.substr(header_begin, header_size);
    NpyArray array;
    array.shape = parse_shape();
    is_fortran_ = value_of("fortran_order").starts_with("True");
    read_values(array, bytes_.substr(header_begin + header_size));
    return array;
  }

 private:
  [[noreturn]] void fail(const std::string& reason) const {
    throw Error(ErrorCode::kCorruptInput, fmt::format("'{}': {}; write it with numpy.save", name_, reason));
  }

  [[noreturn]] void fail_for_type(std::string_view type) const {
    throw Error(ErrorCode::kCorruptInput,
                fmt::format("'{}': numbers of type {}, expected little-endian integers, fp32 or fp64; write it with "
                            "numpy.save(path, loads.astype('<f8'))",
                            name_, type));
  }

  /// What stands behind a key of the header, a Python dictionary.
  [[nodiscard]] std::string_view value_of(std::string_view key) const {
    const std::size_t at = header_.find(fmt::format("'{}':", key));
    if (at == std::string_view::npos) fail(fmt::format("the header has no '{}'", key));
    std::string_view value = header_.substr(at + key.size() + 3);
    value.remove_prefix(std::min(value.find_first_not_of(' '), value.size()));
    return value;
  }

  [[nodiscard]] std::vector<std::int64_t> parse_shape() const {
    std::string_view text = value_of("shape");
    if (!text.starts_with('(')) fail("the shape is no tuple");
    text = text.substr(1, text.find(')') == std::string_view::npos ? 0 : text.find(')') - 1);
    constexpr std::int64_t kNone = -1;
    std::vector<std::int64_t> shape;
    std::int64_t number = kNone;
    std::int64_t num_values = 1;
    for (const char character : std::string(text) + ",") {
      if (character >= '0' && character <= '9') {
        number = std::max<std::int64_t>(number, 0) * 10 + (character - '0');
        if (number > kMaxValues) fail("an axis is too long");
      } else if (character == ',' && number != kNone) {
        shape.push_back(number);
        num_values *= number;
        if (num_values > kMaxValues) fail(fmt::format("more than {} numbers", kMaxValues));
        number = kNone;
      } else if (character != ',' && character != ' ') {
        fail("the shape is not one of whole numbers");
      }
    }
    return shape;
  }

  [[nodiscard]] static std::size_t num_values_of(const std::vector<std::int64_t>& shape) {
    std::size_t num_values = 1;
    for (const std::int64_t length : shape) num_values *= static_cast<std::size_t>(length);
    return num_values;
  }

  template <typename Number>
  void read_as(NpyArray& array, std::string_view data) const {
    const std::size_t num_values = num_values_of(array.shape);
    // Before memory is taken for what a few bytes of a head may ask for.
    if (data.size() < num_values * sizeof(Number)) fail("the data is cut off");
    require_memory(static_cast<std::int64_t>(num_values * sizeof(double)), "the numbers of a .npy file",
                   "give a smaller one, or more memory");
    array.values.resize(num_values);
    for (std::size_t idx = 0; idx < array.values.size(); ++idx) {
      Number number{};
      std::memcpy(&number, data.data() + idx * sizeof(Number), sizeof(Number));
      array.values[place_of(idx, array.shape)] = static_cast<double>(number);
    }
  }

  /// Where the number that lies at `idx` in the file belongs in row-major order.
  [[nodiscard]] std::size_t place_of(std::size_t idx, const std::vector<std::int64_t>& shape) const {
    if (!is_fortran_) return idx;
    std::size_t place = 0;
    std::vector<std::size_t> position(shape.size());
    for (std::size_t axis = 0; axis < shape.size(); ++axis) {
      position[axis] = idx % static_cast<std::size_t>(shape[axis]);
      idx /= static_cast<std::size_t>(shape[axis]);
    }
    for (std::size_t axis = 0; axis < shape.size(); ++axis) {
      place = place * static_cast<std::size_t>(shape[axis]) + position[axis];
    }
    return place;
  }

  void read_values(NpyArray& array, std::string_view data) const {
    const std::string_view type = value_of("descr");
    const auto is = [&](std::string_view name) { return type.substr(1).starts_with(name); };
    if (is("<f8")) return read_as<double>(array, data);
    if (is("<f4")) return read_as<float>(array, data);
    if (is("<i8")) return read_as<std::int64_t>(array, data);
    if (is("<i4")) return read_as<std::int32_t>(array, data);
    if (is("<i2")) return read_as<std::int16_t>(array, data);
    if (is("|i1")) return read_as<std::int8_t>(array, data);
    if (is("<u8")) return read_as<std::uint64_t>(array, data);
    if (is("<u4")) return read_as<std::uint32_t>(array, data);
    if (is("<u2")) return read_as<std::uint16_t>(array, data);
    if (is("|u1")) return read_as<std::uint8_t>(array, data);
    fail_for_type(type.substr(0, type.find(',')));
  }

  std::string_view bytes_;
  std::string_view name_;
  std::string_view header_;
  bool is_fortran_ = false;
};

}  // namespace

bool is_npy(std::string_view bytes) noexcept { return bytes.starts_with(kMagic); }

NpyArray parse_npy(std::string_view bytes, std::string_view name) { return NpyParser(bytes, name).parse(); }

}  // namespace epistle::balance
