// JSON that others wrote: what is wrong with it is said with file and field.
#include "core/json_field.hpp"

#include <string>

#include <gtest/gtest.h>

#include "epistle/error.hpp"

#include "support/temp_dir.hpp"

namespace epistle::test {
namespace {

template <typename Call>
std::string message_of(const Call& call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_TRUE(error.code() == ErrorCode::kCorruptInput || error.code() == ErrorCode::kNotFound);
    return error.what();
  }
  return "nothing was thrown";
}

TEST(JsonField, ReadsWhatIsThere) {
  const auto document = parse_json(R"({"a": {"list": [1, 2.5, "x"]}, "yes": true, "none": null})", "file");
  const JsonField field(document, "file");
  const auto items = field.at("a").at("list").items();
  ASSERT_EQ(items.size(), 3U);
  EXPECT_EQ(items[0].integer({0, 5}), 1);
  EXPECT_EQ(items[1].number({0, 5}), 2.5);
  EXPECT_EQ(items[2].text(), "x");
  EXPECT_TRUE(field.at("yes").boolean());
  EXPECT_FALSE(field.find("none").has_value());
  EXPECT_FALSE(field.find("other").has_value());
}

TEST(JsonField, NamesFileAndField) {
  const auto document = parse_json(R"({"a": {"list": [1, -2, 1e300]}, "big": 18446744073709551615})", "f.json");
  const JsonField field(document, "f.json");
  const auto list = field.at("a").at("list").items();
  EXPECT_EQ(message_of([&] {
              static_cast<void>(list[1].integer({0, 9}));
            }),
            "corrupt input: f.json: field a.list[1] is -2, not from 0 to 9");
  EXPECT_NE(message_of([&] {
              static_cast<void>(list[2].number({0, 9}));
            }).find("a.list[2] is 1e+300"),
            std::string::npos);
  EXPECT_NE(message_of([&] {
              static_cast<void>(field.at("big").integer({0, 9}));
            }).find("18446744073709551615"),
            std::string::npos);
  EXPECT_EQ(message_of([&] { static_cast<void>(field.at("a").text()); }),
            "corrupt input: f.json: field a is object with 1 entries, not a text");
  EXPECT_EQ(message_of([&] { static_cast<void>(field.at("b")); }),
            "corrupt input: f.json: the document has no field 'b'");
  EXPECT_EQ(message_of([&] { static_cast<void>(list[0].at("x")); }),
            "corrupt input: f.json: field a.list[0] is 1, not an object");
}

TEST(JsonField, RefusesWhatIsNoDocument) {
  EXPECT_EQ(message_of([] { static_cast<void>(parse_json("{\n\"a\": }", "f")); }),
            "corrupt input: f: line 2 is not JSON");
  EXPECT_NE(message_of([] { static_cast<void>(parse_json("", "f")); }).find("f: line 1 is not JSON"),
            std::string::npos);
  EXPECT_NE(message_of([] { static_cast<void>(parse_json(std::string(100'000, '['), "f")); }).find("nested more than"),
            std::string::npos);
  EXPECT_NE(message_of([] { static_cast<void>(parse_json("[1e999]", "f")); }).find("f: "), std::string::npos);
  const TempDir dir;
  EXPECT_NE(message_of([&] { static_cast<void>(read_json_file(dir.file("none"))); }).find("cannot open"),
            std::string::npos);
  EXPECT_NE(message_of([&] { static_cast<void>(read_json_file(dir.path().string())); }).find("corrupt input"),
            std::string::npos);
}

// Every key is looked for among those before it: a file of some megabytes would keep a core busy for hours.
TEST(JsonField, RefusesObjectsOfTooManyKeys) {
  const auto object_of = [](int num_keys) {
    std::string text = "{\"k\": 0";
    for (int key = 1; key < num_keys; ++key) text += ", \"" + std::to_string(key) + "\": 0";
    return text + "}";
  };
  EXPECT_EQ(parse_json(object_of(3'000), "f").size(), 3'000U);
  EXPECT_NE(message_of([&] { static_cast<void>(parse_json(object_of(20'000), "f")); }).find("f: it has objects of too"),
            std::string::npos);
}

}  // namespace
}  // namespace epistle::test
