#include "repo/source_tree.hpp"

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>

namespace repo_test {
namespace {

namespace fs = std::filesystem;

constexpr std::array<std::string_view, 10> kFolders = {"include", "src",      "apps",  "python", "tests",
                                                       "bench",   "examples", "cmake", "docs",   "scripts"};

// Files without one of these are looked at only where they are scripts.
constexpr std::array<std::string_view, 15> kTextExtensions = {
    ".hpp", ".h", ".cpp", ".cu", ".cuh", ".py", ".cmake", ".js", ".css", ".in", ".txt", ".md", ".json", ".sh", ".toml"};

std::string read_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path.string());
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

bool is_text(const SourceFile& file) {
  const std::string extension = fs::path(file.path).extension().string();
  return file.is_script() ||
         std::find(kTextExtensions.begin(), kTextExtensions.end(), extension) != kTextExtensions.end();
}

bool is_generated_folder(const fs::path& path) {
  const std::string name = path.filename().string();
  return name.starts_with('.') || name == "build" || name == "__pycache__" || name.ends_with(".egg-info");
}

void add_folder(const fs::path& root, const fs::path& folder, std::vector<SourceFile>& files) {
  for (auto entry = fs::recursive_directory_iterator(folder); entry != fs::recursive_directory_iterator(); ++entry) {
    if (entry->is_directory() && is_generated_folder(entry->path())) entry.disable_recursion_pending();
    if (!entry->is_regular_file()) continue;
    SourceFile file{.path = entry->path().lexically_relative(root).generic_string(), .text = {}};
    if (!is_text(file)) continue;
    file.text = read_file(entry->path());
    files.push_back(std::move(file));
  }
}

std::vector<SourceFile> read_tree() {
  const fs::path root(EPISTLE_SOURCE_DIR);
  std::vector<SourceFile> files;
  for (const std::string_view name : kFolders) {
    if (fs::is_directory(root / name)) add_folder(root, root / name, files);
  }
  if (fs::is_directory(root / ".ci")) add_folder(root, root / ".ci", files);
  for (const auto& entry : fs::directory_iterator(root)) {
    SourceFile file{.path = entry.path().filename().string(), .text = {}};
    if (!entry.is_regular_file() || file.path.starts_with('.') || !is_text(file)) continue;
    file.text = read_file(entry.path());
    files.push_back(std::move(file));
  }
  std::sort(files.begin(), files.end(), [](const auto& a, const auto& b) { return a.path < b.path; });
  return files;
}

}  // namespace

std::vector<std::string_view> SourceFile::lines() const {
  std::vector<std::string_view> result;
  std::string_view rest = text;
  while (!rest.empty()) {
    const std::size_t end = rest.find('\n');
    result.push_back(rest.substr(0, end));
    rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 1);
  }
  return result;
}

bool SourceFile::has_extension(std::initializer_list<std::string_view> extensions) const {
  return std::any_of(extensions.begin(), extensions.end(),
                     [this](std::string_view extension) { return path.ends_with(extension); });
}

bool SourceFile::is_in(std::string_view folder) const {
  return path.size() > folder.size() && path.starts_with(folder) && path[folder.size()] == '/';
}

bool SourceFile::is_script() const {
  const bool no_extension = path.find('.', path.rfind('/') + 1) == std::string::npos;
  return has_extension({".sh"}) || (no_extension && (is_in("scripts") || is_in(".ci")));
}

const std::vector<SourceFile>& source_tree() {
  static const std::vector<SourceFile> files = read_tree();
  return files;
}

std::string read_source(std::string_view path) { return read_file(fs::path(EPISTLE_SOURCE_DIR) / path); }

std::string join_lines(const std::vector<std::string>& lines) {
  std::string text;
  for (const std::string& line : lines) text += "  " + line + "\n";
  return text;
}

}  // namespace repo_test
