#include <filesystem>

#include <gtest/gtest.h>

#include "repo/layer_rules.hpp"

namespace repo_test {
namespace {

std::size_t count_violations(const std::string& path, const std::string& text) {
  return check_includes({.path = path, .text = text}).size();
}

TEST(Layers, EveryIncludeIsAllowed) {
  std::vector<std::string> violations;
  std::size_t num_files = 0;
  for (const SourceFile& file : source_tree()) {
    if (!file.has_extension({".hpp", ".cpp", ".cu", ".cuh"})) continue;
    ++num_files;
    for (std::string& violation : check_includes(file)) violations.push_back(std::move(violation));
  }
  EXPECT_GT(num_files, 0U);
  EXPECT_TRUE(violations.empty()) << join_lines(violations);
}

TEST(Layers, EverySourceFolderHasARow) {
  for (const auto& entry : std::filesystem::directory_iterator(EPISTLE_SOURCE_DIR "/src")) {
    if (!entry.is_directory()) continue;
    const std::string folder = "src/" + entry.path().filename().string();
    bool found = false;
    for (const Layer& layer : layers()) {
      found = found || layer.folder == folder || layer.folder.starts_with(folder + "/");
    }
    EXPECT_TRUE(found) << folder << " has no row in tests/repo/layer_rules.cpp";
  }
}

// The checker itself: what it must let pass and what it must find.

TEST(LayerChecker, AcceptsWhatStandsAbove) {
  EXPECT_EQ(count_violations("src/dispatch/host/a.cpp",
                             "#include <vector>\n#include <fmt/format.h>\n#include \"epistle/types.hpp\"\n"
                             "#include \"core/settings.hpp\"\n#include \"hwy/highway.h\"\n"),
            0U);
  EXPECT_EQ(count_violations("apps/epistle/bench.cpp", "#include \"arguments.hpp\"\n#include \"report/table.hpp\"\n"),
            0U);
  EXPECT_EQ(count_violations("tests/unit/a.cpp", "#include \"dispatch/host/a.hpp\"\n#include <gtest/gtest.h>\n"), 0U);
  EXPECT_EQ(count_violations("tests/support/a.hpp", "#include <fmt/format.h>\n"), 0U);
  EXPECT_EQ(count_violations("src/core/a.cpp", "// #include \"group/group.hpp\"\n"), 0U);
}

TEST(LayerChecker, FindsUpwardIncludes) {
  EXPECT_EQ(count_violations("src/core/a.cpp", "#include \"routing/table.hpp\"\n"), 1U);
  EXPECT_EQ(count_violations("src/group/a.hpp", "  #  include \"dispatch/registry.hpp\"\n"), 1U);
  EXPECT_EQ(count_violations("src/report/a.cpp", "#include \"measure/record.hpp\"\n"), 1U);
  EXPECT_EQ(count_violations("src/plan/a.cpp", "#include \"balance/quota.hpp\"\n"), 1U);
  EXPECT_EQ(count_violations("src/dispatch/call/a.cpp", "#include \"core/a.hpp\"\n#include \"cost/curve.hpp\"\n"), 1U);
}

TEST(LayerChecker, FindsPathsThatAreNotRelativeToSrc) {
  EXPECT_EQ(count_violations("src/core/a.cpp", "#include \"settings.hpp\"\n"), 1U);
  EXPECT_EQ(count_violations("src/core/a.cpp", "#include \"../routing/table.hpp\"\n"), 1U);
  EXPECT_EQ(count_violations("src/core/a.cpp", "#include <epistle/types.hpp>\n"), 1U);
}

TEST(LayerChecker, KeepsPublicHeadersFreeOfOthers) {
  EXPECT_EQ(count_violations("include/epistle/a.hpp", "#include <vector>\n#include \"epistle/types.hpp\"\n"), 0U);
  EXPECT_EQ(count_violations("include/epistle/a.hpp", "#include <nlohmann/json.hpp>\n"), 1U);
  EXPECT_EQ(count_violations("include/epistle/a.hpp", "#include <cuda_runtime.h>\n"), 1U);
  EXPECT_EQ(count_violations("include/epistle/a.hpp", "#include <unistd.h>\n"), 1U);
  EXPECT_EQ(count_violations("include/epistle/a.hpp", "#include \"core/settings.hpp\"\n"), 1U);
  EXPECT_EQ(count_violations("examples/a.cpp", "#include \"core/settings.hpp\"\n"), 1U);
}

TEST(LayerChecker, KeepsReferenceApartAndDecisionsFreeOfCuda) {
  EXPECT_EQ(count_violations("src/dispatch/reference/a.cpp", "#include \"dispatch/host/direct/a.hpp\"\n"), 1U);
  EXPECT_EQ(count_violations("src/dispatch/reference/a.cpp", "#include \"dispatch/call/a.hpp\"\n"), 0U);
  EXPECT_EQ(count_violations("src/dispatch/call/a.hpp", "#include \"dispatch/host/direct/direct.hpp\"\n"), 1U);
  EXPECT_EQ(count_violations("src/dispatch/host/engine/a.hpp", "#include \"dispatch/host/direct/direct.hpp\"\n"), 1U);
  EXPECT_EQ(count_violations("src/dispatch/cuda/direct/a.cu", "#include \"dispatch/host/engine/a.hpp\"\n"), 1U);
  EXPECT_EQ(count_violations("src/dispatch/cuda/engine/a.cpp", "#include \"dispatch/cuda/direct/a.hpp\"\n"), 1U);
  EXPECT_EQ(count_violations("src/dispatch/cuda/device/a.cuh", "#include \"dispatch/cuda/low_latency/a.cuh\"\n"), 1U);
  EXPECT_EQ(count_violations("src/dispatch/cuda/low_latency/a.cu", "#include \"dispatch/cuda/direct/a.cuh\"\n"), 0U);
  EXPECT_EQ(count_violations("src/dispatch/host/direct/a.cpp", "#include <cuda_runtime_api.h>\n"), 1U);
  EXPECT_EQ(count_violations("src/select/a.cpp", "#include <cuda_runtime_api.h>\n"), 1U);
  EXPECT_EQ(count_violations("src/balance/a.cpp", "#include \"dispatch/cuda/kernels.hpp\"\n"), 1U);
}

TEST(LayerChecker, KeepsThirdPartyHeadersInTheirPlace) {
  EXPECT_EQ(count_violations("src/core/a.hpp", "#include <fmt/format.h>\n"), 1U);
  EXPECT_EQ(count_violations("src/core/a.cpp", "#include <CLI/CLI.hpp>\n"), 1U);
  EXPECT_EQ(count_violations("src/core/a.cpp", "#include <gtest/gtest.h>\n"), 1U);
}

}  // namespace
}  // namespace repo_test
