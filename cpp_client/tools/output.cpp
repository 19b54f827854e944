#include "output.h"

#include <algorithm>
#include <bit>
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>

namespace nin::tool {
namespace {

using Row = std::vector<std::string>;

static_assert(std::endian::native == std::endian::little, "f32 is written as it lies in memory");

std::string printed(const char* pattern, double value) {
  char text[32];
  std::snprintf(text, sizeof text, pattern, value);
  return text;
}

/// Reads well on a terminal and is Markdown too; every second column from the third is a number.
void print_row(const Row& cells, const std::vector<std::size_t>& widths) {
  for (std::size_t i = 0; i < cells.size(); ++i) {
    const std::string space(widths[i] - cells[i].size(), ' ');
    const bool number = i >= 2 && i % 2 == 0;
    std::cout << "| " << (number ? space + cells[i] : cells[i] + space) << ' ';
  }
  std::cout << "|\n";
}

void print_rule(const std::vector<std::size_t>& widths) {
  for (std::size_t i = 0; i < widths.size(); ++i) {
    std::cout << '|' << std::string(widths[i] + 1, '-') << (i >= 2 && i % 2 == 0 ? ':' : '-');
  }
  std::cout << "|\n";
}

void print_table(const std::vector<std::string>& names,
                 const std::vector<std::vector<Prediction>>& top) {
  std::vector<Row> rows{{"image"}};
  for (std::size_t k = 1; k <= top.front().size(); ++k) {
    rows[0].push_back(top.front().size() > 1 ? std::to_string(k) + '.' : "prediction");
    rows[0].emplace_back("probability");
  }
  for (std::size_t i = 0; i < names.size(); ++i) {
    rows.push_back({names[i]});
    for (const Prediction& prediction : top[i]) {
      rows.back().push_back(prediction.label);
      rows.back().push_back(printed("%.3f", prediction.probability));
    }
  }
  std::vector<std::size_t> widths(rows[0].size());
  for (const Row& row : rows) {
    for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  print_row(rows[0], widths);
  print_rule(widths);
  for (std::size_t i = 1; i < rows.size(); ++i) print_row(rows[i], widths);
}

void print_json(const std::vector<std::string>& names,
                const std::vector<std::vector<Prediction>>& top, const std::vector<float>& logits) {
  const std::size_t classes = logits.size() / names.size();
  auto images = nlohmann::ordered_json::array();
  for (std::size_t i = 0; i < names.size(); ++i) {
    auto predictions = nlohmann::ordered_json::array();
    for (const Prediction& p : top[i]) {
      predictions.push_back(
          {{"index", p.index}, {"label", p.label}, {"probability", p.probability}});
    }
    const auto row = logits.begin() + static_cast<std::ptrdiff_t>(i * classes);
    const std::vector<float> own(row, row + static_cast<std::ptrdiff_t>(classes));
    images.push_back({{"image", names[i]}, {"predictions", predictions}, {"logits", own}});
  }
  // a file's name needn't be UTF-8
  const auto replace = nlohmann::ordered_json::error_handler_t::replace;
  std::cout << images.dump(2, ' ', false, replace) << '\n';
}

std::string quoted(const std::string& text) {
  if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
  std::string result = "\"";
  for (const char c : text) result += c == '"' ? "\"\"" : std::string(1, c);
  return result + '"';
}

void print_csv(const std::vector<std::string>& names,
               const std::vector<std::vector<Prediction>>& top) {
  std::cout << "image,rank,index,label,probability\n";
  for (std::size_t i = 0; i < names.size(); ++i) {
    for (std::size_t k = 0; k < top[i].size(); ++k) {
      const Prediction& p = top[i][k];
      std::cout << quoted(names[i]) << ',' << k + 1 << ',' << p.index << ',' << quoted(p.label)
                << ',' << printed("%.9g", p.probability) << '\n';
    }
  }
}

}  // namespace

void print(const std::string& format, const std::vector<std::string>& names,
           const std::vector<std::vector<Prediction>>& top, const std::vector<float>& logits) {
  if (format == "f32") {
    std::cout.write(reinterpret_cast<const char*>(logits.data()),
                    static_cast<std::streamsize>(logits.size() * sizeof(float)));
  } else if (format == "json") {
    print_json(names, top, logits);
  } else if (format == "csv") {
    print_csv(names, top);
  } else {
    print_table(names, top);
  }
}

void print_accuracy(const std::string& format, const std::vector<std::vector<Prediction>>& top,
                    const std::vector<std::uint8_t>& labels) {
  std::size_t right = 0;
  for (std::size_t i = 0; i < labels.size(); ++i) right += top[i].front().index == labels[i];
  const double share = static_cast<double>(right) / static_cast<double>(labels.size());
  (format == "table" ? std::cout : std::cerr) << "accuracy " << printed("%.4f", share) << ", "
                                              << right << " of " << labels.size() << " images\n";
}

}  // namespace nin::tool
