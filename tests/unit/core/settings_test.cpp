#include "core/settings.hpp"

#include <algorithm>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "epistle/error.hpp"

#include "core/log.hpp"
#include "support/environment.hpp"

namespace epistle {
namespace {

const std::vector<std::string> kNames = {
    "EPISTLE_TIMEOUT_MS",        "EPISTLE_SPIN_US",      "EPISTLE_LOG",         "EPISTLE_STREAM_BYTES",
    "EPISTLE_DOMAIN_SIZE",       "EPISTLE_SIMD",         "EPISTLE_CUDA_HEAP",   "EPISTLE_NCCL_LIBRARY",
    "EPISTLE_INTERFACE",         "EPISTLE_PORT",         "EPISTLE_HOST_ID",     "EPISTLE_JOB_SECRET",
    "EPISTLE_FABRIC_PROVIDER",   "EPISTLE_FABRIC_NICS",  "EPISTLE_DOMAIN_LINK", "EPISTLE_FABRIC_LIBRARY",
    "EPISTLE_FABRIC_GPU_MEMORY", "EPISTLE_NVLINK_FABRIC"};

class SettingsTest : public ::testing::Test {
 protected:
  SettingsTest() {
    for (const std::string& name : kNames) environment_.unset(name);
    reload_settings_for_testing();
  }
  void TearDown() override { reload_settings_for_testing(); }

  void set(const std::string& name, const std::string& value) {
    environment_.set(name, value);
    reload_settings_for_testing();
  }

  static const SettingInfo& info(const std::string& name) {
    const auto& infos = settings().infos();
    return *std::find_if(infos.begin(), infos.end(), [&](const SettingInfo& entry) { return entry.name == name; });
  }

  /// The message of the error that reading the settings gives; empty where it gives none.
  static std::string error_message() {
    try {
      static_cast<void>(settings());
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
      return error.what();
    }
    return {};
  }

  test::ScopedEnvironment environment_;
};

TEST_F(SettingsTest, DefaultsStandWhereNothingIsSet) {
  EXPECT_EQ(settings().timeout_ms(), 30000);
  EXPECT_EQ(settings().spin_us(), kAutomatic);
  EXPECT_EQ(settings().stream_bytes(), kAutomatic);
  EXPECT_EQ(settings().log_level(), LogLevel::kWarn);
  EXPECT_EQ(settings().simd(), "auto");
  EXPECT_EQ(settings().cuda_heap(), CudaHeapChoice::kAuto);
  EXPECT_EQ(settings().nccl_library(), "libnccl.so.2");
  EXPECT_EQ(settings().fabric_library(), "libfabric.so.1");
  EXPECT_EQ(settings().gpu_link(), GpuLinkChoice::kAuto);
  EXPECT_EQ(settings().nvlink_fabric(), "auto");
  for (const SettingInfo& entry : settings().infos()) {
    EXPECT_EQ(entry.origin, SettingOrigin::kDefault) << entry.name;
    EXPECT_EQ(entry.value, entry.default_value) << entry.name;
    EXPECT_FALSE(entry.accepted.empty()) << entry.name;
    EXPECT_FALSE(entry.summary.empty()) << entry.name;
  }
}

TEST_F(SettingsTest, RegistryListsEverySetting) {
  ASSERT_EQ(settings().infos().size(), kNames.size());
  for (std::size_t i = 0; i < kNames.size(); ++i) EXPECT_EQ(settings().infos()[i].name, kNames[i]);
}

TEST_F(SettingsTest, SecretsAreReadAndNotShown) {
  set("EPISTLE_JOB_SECRET", "open sesame");
  EXPECT_EQ(settings().job_secret(), "open sesame");
  EXPECT_EQ(info("EPISTLE_JOB_SECRET").origin, SettingOrigin::kEnvironment);
  EXPECT_EQ(info("EPISTLE_JOB_SECRET").value, "(hidden)");
}

TEST_F(SettingsTest, EnvironmentWinsAndIsNamedAsOrigin) {
  set("EPISTLE_TIMEOUT_MS", "250");
  set("EPISTLE_SPIN_US", "0");
  set("EPISTLE_STREAM_BYTES", "1048576");
  set("EPISTLE_LOG", "debug");
  set("EPISTLE_SIMD", "AVX2");
  set("EPISTLE_NCCL_LIBRARY", "/opt/nccl/libnccl.so");
  EXPECT_EQ(settings().nccl_library(), "/opt/nccl/libnccl.so");
  EXPECT_EQ(settings().timeout_ms(), 250);
  EXPECT_EQ(settings().spin_us(), 0);
  EXPECT_EQ(settings().stream_bytes(), 1048576);
  EXPECT_EQ(settings().log_level(), LogLevel::kDebug);
  EXPECT_EQ(settings().simd(), "AVX2");
  EXPECT_EQ(info("EPISTLE_TIMEOUT_MS").origin, SettingOrigin::kEnvironment);
  EXPECT_EQ(info("EPISTLE_TIMEOUT_MS").value, "250");
  EXPECT_EQ(info("EPISTLE_TIMEOUT_MS").default_value, "30000");
}

TEST_F(SettingsTest, EmptyVariableIsNotSet) {
  set("EPISTLE_TIMEOUT_MS", "");
  EXPECT_EQ(settings().timeout_ms(), 30000);
  EXPECT_EQ(info("EPISTLE_TIMEOUT_MS").origin, SettingOrigin::kDefault);
}

TEST_F(SettingsTest, EveryLogLevelIsAccepted) {
  for (const LogLevel level : {LogLevel::kOff, LogLevel::kError, LogLevel::kWarn, LogLevel::kInfo, LogLevel::kDebug}) {
    set("EPISTLE_LOG", std::string(to_string(level)));
    EXPECT_EQ(settings().log_level(), level);
  }
}

TEST_F(SettingsTest, EveryCudaHeapIsAccepted) {
  for (const CudaHeapChoice choice :
       {CudaHeapChoice::kAuto, CudaHeapChoice::kFd, CudaHeapChoice::kFabric, CudaHeapChoice::kIpc}) {
    set("EPISTLE_CUDA_HEAP", std::string(to_string(choice)));
    EXPECT_EQ(settings().cuda_heap(), choice);
  }
  EXPECT_EQ(info("EPISTLE_CUDA_HEAP").accepted, "auto, fd, fabric, ipc");
  EXPECT_EQ(info("EPISTLE_CUDA_HEAP").default_value, "auto");
}

TEST_F(SettingsTest, LimitsAreInclusive) {
  for (const char* const value : {"1", "86400000"}) {
    set("EPISTLE_TIMEOUT_MS", value);
    EXPECT_EQ(error_message(), "") << value;
  }
  set("EPISTLE_SPIN_US", "-1");
  EXPECT_EQ(settings().spin_us(), kAutomatic);
}

TEST_F(SettingsTest, MalformedValuesNameVariableValueAndRange) {
  for (const char* const value : {"0", "86400001", "-1", "5s", " 5", "1e3", "99999999999999999999"}) {
    set("EPISTLE_TIMEOUT_MS", value);
    const std::string message = error_message();
    EXPECT_NE(message.find("EPISTLE_TIMEOUT_MS"), std::string::npos) << value;
    EXPECT_NE(message.find("'" + std::string(value) + "'"), std::string::npos) << message;
    EXPECT_NE(message.find("1 to 86400000"), std::string::npos) << message;
  }
}

TEST_F(SettingsTest, MalformedWordsNameTheWordsThereAre) {
  set("EPISTLE_LOG", "verbose");
  EXPECT_NE(error_message().find("off, error, warn, info, debug"), std::string::npos) << error_message();
  environment_.unset("EPISTLE_LOG");
  set("EPISTLE_CUDA_HEAP", "vmm");
  EXPECT_NE(error_message().find("EPISTLE_CUDA_HEAP is 'vmm', but must be auto, fd, fabric, ipc"), std::string::npos)
      << error_message();
  environment_.unset("EPISTLE_CUDA_HEAP");
  set("EPISTLE_SPIN_US", "-2");
  EXPECT_NE(error_message().find("-1 or 0 to"), std::string::npos) << error_message();
  environment_.unset("EPISTLE_SPIN_US");
  set("EPISTLE_SIMD", "avx 2");
  EXPECT_NE(error_message().find("EPISTLE_SIMD"), std::string::npos) << error_message();
}

TEST_F(SettingsTest, ErrorStaysUntilTheEnvironmentIsMended) {
  set("EPISTLE_LOG", "verbose");
  EXPECT_NE(error_message(), "");
  EXPECT_NE(error_message(), "");
  environment_.set("EPISTLE_LOG", "info");
  EXPECT_EQ(settings().log_level(), LogLevel::kInfo);
}

TEST_F(SettingsTest, ValuesAreReadOnce) {
  const Settings& before = settings();
  environment_.set("EPISTLE_TIMEOUT_MS", "77");
  EXPECT_EQ(settings().timeout_ms(), 30000);
  reload_settings_for_testing();
  EXPECT_EQ(settings().timeout_ms(), 77);
  EXPECT_EQ(before.timeout_ms(), 30000);  // an old reference keeps its values
}

TEST_F(SettingsTest, FirstReadFromManyThreadsGivesOneSnapshot) {
  constexpr std::size_t kThreads = 8;
  std::vector<const Settings*> seen(kThreads, nullptr);
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < kThreads; ++i) threads.emplace_back([&seen, i] { seen[i] = &settings(); });
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(std::all_of(seen.begin(), seen.end(), [&](const Settings* one) { return one == seen[0]; }));
}

TEST_F(SettingsTest, LogLevelFilters) {
  EXPECT_TRUE(log_enabled(LogLevel::kError));
  EXPECT_TRUE(log_enabled(LogLevel::kWarn));
  EXPECT_FALSE(log_enabled(LogLevel::kInfo));
  set("EPISTLE_LOG", "off");
  EXPECT_FALSE(log_enabled(LogLevel::kError));
  set("EPISTLE_LOG", "debug");
  EXPECT_TRUE(log_enabled(LogLevel::kDebug));
  EXPECT_FALSE(log_enabled(LogLevel::kOff));  // no message can be of level "off"
}

TEST_F(SettingsTest, LogWorksWithMalformedSettings) {
  set("EPISTLE_TIMEOUT_MS", "soon");
  EXPECT_TRUE(log_enabled(LogLevel::kWarn));
  EXPECT_FALSE(log_enabled(LogLevel::kInfo));
}

TEST_F(SettingsTest, LogWritesOneLine) {
  ::testing::internal::CaptureStderr();
  log_warn("disk is nearly full");
  log_info("not shown at the default level");
  const std::string text = ::testing::internal::GetCapturedStderr();
  EXPECT_TRUE(text.starts_with("epistle")) << text;
  EXPECT_TRUE(text.ends_with(": warn: disk is nearly full\n")) << text;
}

}  // namespace
}  // namespace epistle
