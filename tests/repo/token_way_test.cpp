// "One token, five files": docs/architecture.md names the files that a token passes in `direct`, and whoever follows
// the calls meets no others but leaf helpers. What is followed here are includes: of what a file does not include it
// calls nothing.
#include <algorithm>
#include <cctype>
#include <map>
#include <regex>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "repo/source_tree.hpp"

namespace repo_test {
namespace {

/// The files of the numbered list behind a heading: the first name in every item.
std::vector<std::string> steps_of(const std::string& page, const std::string& heading) {
  static const std::regex item(R"(^\d+\. `([^`]+)`.*)");
  std::vector<std::string> steps;
  const SourceFile section{.path = {}, .text = page.substr(page.find(heading) + heading.size())};
  for (const std::string_view line : section.lines()) {
    if (line.starts_with("#")) break;
    std::match_results<std::string_view::const_iterator> match;
    if (std::regex_match(line.begin(), line.end(), match, item)) steps.push_back(match[1].str());
  }
  return steps;
}

using Files = std::map<std::string, const SourceFile*, std::less<>>;

const Files& files() {
  static const Files all = [] {
    Files found;
    for (const SourceFile& file : source_tree()) found.emplace(file.path, &file);
    return found;
  }();
  return all;
}

std::string stem_of(std::string_view path) { return std::string(path.substr(0, path.rfind('.'))); }

/// The files of the project below src/ that one includes, and those that have what a header of it declares.
std::vector<std::string> led_to_by(const std::string& path) {
  constexpr std::string_view kInclude = "#include \"";
  std::vector<std::string> found;
  const auto add = [&found](std::string name) {
    if (files().contains(name)) found.push_back(std::move(name));
  };
  for (const std::string_view line : files().at(path)->lines()) {
    if (line.starts_with(kInclude)) {
      add("src/" + std::string(line.substr(kInclude.size(), line.rfind('"') - kInclude.size())));
    }
  }
  if (path.ends_with(".hpp")) {
    for (const char* const extension : {".cpp", ".cu"}) add(stem_of(path) + extension);
  }
  return found;
}

/// What declares steps below src/: the last of them, counted from 0. Later ones must not include it.
struct Header {
  std::string path;
  std::size_t last_step;
};
/// A way that a token takes.
struct Way {
  std::string heading;
  std::size_t most_files;
  std::vector<Header> headers;
};

const Way& on_host() {
  static const Way way{.heading = "## The life of one token on the host\n",
                       .most_files = 5,
                       .headers = {{"src/dispatch/host/engine/host_engine.hpp", 1},
                                   {"src/dispatch/host/engine/preparation.hpp", 2},
                                   {"src/dispatch/host/engine/token_places.hpp", 3},
                                   {"src/dispatch/host/direct/direct.hpp", 4}}};
  return way;
}
const Way& on_cuda() {
  static const Way way{.heading = "### The life of one token on CUDA\n",
                       .most_files = 7,
                       .headers = {{"src/dispatch/cuda/engine/cuda_engine.hpp", 2},
                                   {"src/dispatch/cuda/engine/cuda_call_parts.hpp", 1},
                                   {"src/dispatch/cuda/direct/direct.hpp", 4}}};
  return way;
}

/// The way from `path` to a step, file by file; empty where there is none.
std::string way_to_a_step(const std::string& path, const std::set<std::string>& steps) {
  std::map<std::string, std::string> from{{path, ""}};
  std::vector<std::string> open{path};
  while (!open.empty()) {
    const std::string file = open.back();
    open.pop_back();
    if (steps.contains(file)) {
      std::string way = file;
      for (std::string at = from.at(file); !at.empty(); at = from.at(at)) way = at + " -> " + way;
      return way;
    }
    for (const std::string& next : led_to_by(file)) {
      if (from.emplace(next, file).second) open.push_back(next);
    }
  }
  return {};
}

bool is_name(char letter) { return std::isalnum(static_cast<unsigned char>(letter)) != 0 || letter == '_'; }

/// The names of the members of a class that a file defines.
std::set<std::string> members_defined_in(const std::string& path, const std::string& of_class) {
  std::set<std::string> names;
  for (const std::string_view line : files().at(path)->lines()) {
    const std::size_t name = line.find(of_class + "::");
    if (line.starts_with(' ') || name == std::string_view::npos) continue;
    const std::string_view rest = line.substr(name + of_class.size() + 2);
    const auto end = std::find_if_not(rest.begin(), rest.end(), is_name);
    if (end != rest.end() && *end == '(') names.emplace(rest.begin(), end);
  }
  return names;
}

/// Whether a file calls a function of its own class by that name.
bool calls(const std::string& path, const std::string& name) {
  const std::string& text = files().at(path)->text;
  for (std::size_t at = text.find(name + "("); at != std::string::npos; at = text.find(name + "(", at + 1)) {
    const char before = at == 0 ? ' ' : text[at - 1];
    if (!is_name(before) && before != ':' && before != '.' && before != '>') return true;
  }
  return false;
}

class TokenWay : public ::testing::TestWithParam<const Way*> {
 protected:
  [[nodiscard]] static std::vector<std::string> steps() {
    return steps_of(read_source("docs/architecture.md"), GetParam()->heading);
  }
};

TEST_P(TokenWay, IsOfFewFilesThatAreThere) {
  EXPECT_EQ(steps().size(), GetParam()->most_files);
  for (const std::string& step : steps()) EXPECT_TRUE(files().contains(step)) << step;
}

TEST_P(TokenWay, LeadsForwardOrToLeafHelpers) {
  const std::vector<std::string> all = steps();
  std::set<std::string> of_way(all.begin() + 1, all.end());  // the public header has types, and calls nothing
  for (const Header& header : GetParam()->headers) of_way.insert(header.path);
  for (std::size_t step = 1; step < all.size(); ++step) {
    for (const std::string& next : led_to_by(all[step])) {
      const auto header = std::find_if(GetParam()->headers.begin(), GetParam()->headers.end(),
                                       [&next](const Header& known) { return known.path == next; });
      if (header != GetParam()->headers.end()) {
        EXPECT_LE(step, header->last_step) << all[step] << " includes " << next << ", which is of a step before it";
        continue;
      }
      EXPECT_EQ(way_to_a_step(next, of_way), "") << all[step] << " takes " << next << " for a leaf helper";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Direct, TokenWay, ::testing::Values(&on_host(), &on_cuda()),
                         [](const auto& param_info) { return param_info.param->most_files == 5 ? "Host" : "Cuda"; });

// The steps of the CUDA engine are members of one class: the later ones do not call the earlier ones.
TEST(TokenWayOnCuda, PrepareCallsNothingOfTheCalls) {
  const std::string engine = "src/dispatch/cuda/engine/";
  const std::set<std::string> of_calls = members_defined_in(engine + "cuda_calls.cpp", "CudaEngine");
  EXPECT_TRUE(of_calls.contains("dispatch")) << "not read";
  for (const std::string& name : of_calls) {
    for (const char* const later : {"cuda_prepare.cpp", "cuda_call_steps.cpp", "cuda_memory.cpp"}) {
      EXPECT_FALSE(calls(engine + later, name)) << later << " calls " << name << " of cuda_calls.cpp";
    }
  }
  for (const std::string& name : members_defined_in(engine + "cuda_prepare.cpp", "CudaEngine")) {
    EXPECT_FALSE(calls(engine + "cuda_call_steps.cpp", name)) << "cuda_call_steps.cpp calls " << name;
  }
}

}  // namespace
}  // namespace repo_test
