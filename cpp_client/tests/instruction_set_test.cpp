#include "instruction_set.h"

#include <gtest/gtest.h>

#include <string>

#include "nin/error.h"

namespace {

std::string error_of(const std::string& name, const nin::HasFeature& has) {
  try {
    nin::check_instruction_set(name, has);
  } catch (const nin::Error& error) {
    return error.what();
  }
  return "";
}

const auto everything = [](std::string_view) { return true; };
const auto no_avx512 = [](std::string_view feature) { return !feature.starts_with("avx512"); };
const auto no_vnni = [](std::string_view feature) { return feature != "avx512vnni"; };

TEST(InstructionSet, IsRefusedWhereTheCpuLacksIt) {
  EXPECT_EQ(error_of("avx2", no_avx512), "");
  EXPECT_NE(error_of("avx512", no_avx512).find("for avx512, but this CPU has no avx512f;"),
            std::string::npos);
  EXPECT_EQ(error_of("avx512", no_vnni), "");
  EXPECT_NE(error_of("avx512_vnni", no_vnni).find("this CPU has no avx512vnni;"),
            std::string::npos);
  EXPECT_EQ(error_of("avx512_vnni", everything), "");
}

TEST(InstructionSet, IsRefusedWhereItIsUnknown) {
  const std::string expected = "machine code for 'avx?9000', known are avx2, avx512, avx512_vnni;";
  EXPECT_NE(error_of("avx\n9000", everything).find(expected), std::string::npos);
  EXPECT_NE(error_of("", everything), "");
}

TEST(InstructionSet, ThisCpuKnowsItsFeatures) {
  EXPECT_FALSE(nin::cpu_has("nonsense"));
#if defined(__x86_64__)
  EXPECT_EQ(nin::cpu_has("avx2"), __builtin_cpu_supports("avx2") != 0);
#endif
}

}  // namespace
