#include "routing/trace_sax.hpp"

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <limits>
#include <string>
#include <variant>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

namespace epistle {
namespace {

using Json = nlohmann::json;

// Where values stand: {"expert_ids": [[8, 26], ...]} has its keys in the object, rows in a column, entries in a row.
constexpr int kOutside = 0;
constexpr int kInObject = 1;
constexpr int kInColumn = 2;
constexpr int kInRow = 3;

// Bounds what the parser remembers of open brackets inside unknown keys.
constexpr int kMaxNesting = 256;

constexpr std::size_t kMaxQuotedChars = 40;

// The parser holds a token whole, and the white space before it. Numbers have some twenty characters; notes that a
// recorder adds are strings.
constexpr std::size_t kMaxTokenBytes = std::size_t{64} * 1024;

struct UnknownKey {
  bool operator==(const UnknownKey& other) const = default;
};
using Field = std::variant<UnknownKey, TraceHeader, TraceColumn>;

Field field_of(std::string_view key) {
  const auto* const header = std::find(kTraceHeaderNames.begin(), kTraceHeaderNames.end(), key);
  if (header != kTraceHeaderNames.end()) return static_cast<TraceHeader>(header - kTraceHeaderNames.begin());
  const auto* const column = std::find(kTraceColumnNames.begin(), kTraceColumnNames.end(), key);
  if (column != kTraceColumnNames.end()) return static_cast<TraceColumn>(column - kTraceColumnNames.begin());
  return UnknownKey{};
}

/// Bounds what the parser has to hold of the characters that it takes.
class TokenGuard {
 public:
  explicit TokenGuard(const TraceStream& source) : source_(&source) {}

  void take(char character) {
    if (++num_bytes_ > kMaxTokenBytes) {
      source_->fail_corrupt(fmt::format(
          "a string, a key, a number or the space around it is longer than {} bytes; shorten it", kMaxTokenBytes));
    }
    if (in_string_) {
      const bool escaped = last_ == '\\' && !last_escaped_;
      if (character == '"' && !escaped) end_token(false);
      last_escaped_ = escaped;
    } else if (character == '"') {
      end_token(true);
    } else if (kStructural.find(character) != std::string_view::npos) {
      end_token(false);
    }
    last_ = character;
  }

  /// The character taken last; 0 = none.
  [[nodiscard]] char last() const noexcept { return last_; }

 private:
  static constexpr std::string_view kStructural = "{}[],:";

  void end_token(bool begins_string) {
    num_bytes_ = 0;
    in_string_ = begins_string;
    last_escaped_ = false;
  }

  const TraceStream* source_;
  std::size_t num_bytes_ = 0;
  bool in_string_ = false;
  bool last_escaped_ = false;  // the last character stood behind a backslash
  char last_ = '\0';
};

/// The characters of the current line, on their way to the parser. One that was made without a source is the end.
class LineIterator {
 public:
  // NOLINTBEGIN(readability-identifier-naming): the names that std::iterator_traits reads
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = char;
  // NOLINTEND(readability-identifier-naming)

  LineIterator() = default;
  LineIterator(TraceStream& source, TokenGuard& guard) : source_(&source), guard_(&guard) {}

  char operator*() const { return Traits::to_char_type(source_->sgetc()); }
  LineIterator& operator++() {
    guard_->take(Traits::to_char_type(source_->sbumpc()));
    return *this;
  }
  bool operator==(const LineIterator& other) const { return at_end() == other.at_end(); }

 private:
  using Traits = std::char_traits<char>;

  [[nodiscard]] bool at_end() const { return source_ == nullptr || source_->sgetc() == Traits::eof(); }

  TraceStream* source_ = nullptr;
  TokenGuard* guard_ = nullptr;
};

/// The interface that nlohmann::json::sax_parse calls; the names and signatures are the library's.
class TraceSax {
 public:
  TraceSax(const TraceStream& source, TraceLayerBuilder& builder, TraceLineObserver& observer)
      : source_(&source), builder_(&builder), observer_(&observer) {}

  bool null() { return accept_other("null"); }
  bool boolean(bool /*value*/) { return accept_other("a boolean"); }
  bool string(std::string& /*value*/) { return accept_other("a string"); }
  bool binary(Json::binary_t& /*value*/) { return accept_other("binary data"); }
  bool number_integer(std::int64_t value) { return accept_integer(value); }
  bool number_unsigned(std::uint64_t value) {
    if (value <= kMaxInt64) return accept_integer(static_cast<std::int64_t>(value));
    return number_float(static_cast<double>(value), {});
  }
  bool number_float(double value, const std::string& /*text*/) {
    if (!in_row_of(TraceColumn::kWeights)) return accept_other("a number that is no 64-bit integer");
    builder_->add_weight(value);
    return true;
  }

  bool start_object(std::size_t /*num_members*/) {
    if (nesting_ == kOutside) {
      nesting_ = kInObject;
      return true;
    }
    return enter_unknown("an object");
  }
  bool end_object() {
    --nesting_;
    return true;
  }
  bool key(std::string& name) {
    if (nesting_ != kInObject) return true;  // of an object in an unknown key
    field_ = field_of(name);
    field_name_ = name.substr(0, kMaxQuotedChars);
    return true;
  }

  bool start_array(std::size_t /*num_elements*/) {
    const auto* const column = std::get_if<TraceColumn>(&field_);
    if (column == nullptr || nesting_ < kInObject || nesting_ > kInColumn) return enter_unknown("an array");
    if (nesting_ == kInObject) {
      if (!columns_begun_) observer_->before_columns(*builder_);
      columns_begun_ = true;
      builder_->begin_column(*column);
    } else {
      builder_->begin_row(*column);
    }
    ++nesting_;
    return true;
  }
  bool end_array() {
    const auto* const column = std::get_if<TraceColumn>(&field_);
    if (column != nullptr && nesting_ == kInRow) builder_->end_row(*column);
    --nesting_;
    return true;
  }

  bool parse_error(std::size_t position, const std::string& last_token, const Json::exception& error) {
    if (error.id == kOutOfRangeError) {
      source_->fail_corrupt(fmt::format("the number '{}' is out of range", last_token.substr(0, kMaxQuotedChars)));
    }
    source_->fail_corrupt(
        fmt::format("not one whole JSON object: unexpected end or text at character {}, near '{}'; "
                    "repair or remove the line",
                    position, last_token.substr(0, kMaxQuotedChars)));
  }

 private:
  static constexpr auto kMaxInt64 = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
  static constexpr int kOutOfRangeError = 406;  // nlohmann's json.exception.out_of_range.406: number overflow

  [[nodiscard]] bool in_row_of(TraceColumn column) const { return nesting_ == kInRow && field_ == Field(column); }
  [[nodiscard]] bool in_unknown() const { return nesting_ >= kInObject && std::holds_alternative<UnknownKey>(field_); }

  bool accept_integer(std::int64_t value) {
    if (in_row_of(TraceColumn::kExpertIds)) {
      builder_->add_expert_id(value);
    } else if (in_row_of(TraceColumn::kWeights)) {
      builder_->add_weight(static_cast<double>(value));
    } else if (const auto* const header = std::get_if<TraceHeader>(&field_); header != nullptr) {
      builder_->set_header(*header, value);
      if (*header == TraceHeader::kLayer) return observer_->on_layer_number(value);
    } else {
      return accept_other("an integer");
    }
    return true;
  }

  bool accept_other(std::string_view found) {
    if (!in_unknown()) fail_type(found);
    return true;
  }

  bool enter_unknown(std::string_view found) {
    if (!in_unknown()) fail_type(found);
    if (++nesting_ > kMaxNesting) source_->fail_corrupt(fmt::format("brackets nest deeper than {}", kMaxNesting));
    return true;
  }

  [[noreturn]] void fail_type(std::string_view found) const {
    if (nesting_ == kOutside) source_->fail_corrupt(fmt::format("expected one object per line, found {}", found));
    std::string_view expected = "an integer";
    if (const auto* const column = std::get_if<TraceColumn>(&field_); column != nullptr) {
      if (nesting_ == kInObject) expected = "an array of rows";
      if (nesting_ == kInColumn) expected = "a row (an array)";
      if (nesting_ == kInRow && *column == TraceColumn::kWeights) expected = "a number";
    }
    source_->fail_corrupt(fmt::format("in \"{}\": expected {}, found {}", field_name_, expected, found));
  }

  const TraceStream* source_;
  TraceLayerBuilder* builder_;
  TraceLineObserver* observer_;
  Field field_;
  std::string field_name_;
  int nesting_ = kOutside;
  bool columns_begun_ = false;
};

}  // namespace

bool parse_trace_line(TraceStream& source, TraceLayerBuilder& builder, TraceLineObserver& observer) {
  TraceSax sax(source, builder, observer);
  TokenGuard guard(source);
  if (Json::sax_parse(LineIterator(source, guard), LineIterator(), &sax)) {
    builder.finish();
    return true;
  }
  // The rest is not parsed, but a line that was cut off shows at its end.
  const char last = source.skip_line();
  if ((last == '\0' ? guard.last() : last) != '}') {
    source.fail_corrupt("the line does not end with '}'; the file is truncated, copy or record it again");
  }
  return false;
}

}  // namespace epistle
