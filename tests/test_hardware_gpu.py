"""GPUs, drivers and the choice of a device, on recorded machines."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from infinitalk_cli import hardware_gpu
from infinitalk_cli.errors import EnvironmentUnfitError, InputError
from infinitalk_cli.hardware import Hardware, choose_gpu, choose_gpus, cuda_environment, visible_gpus
from tests.hardware_fixtures import RecordedNvml, hardware, look, recording

MIB, GIB = 1 << 20, 1 << 30


def labels(found: Hardware) -> list[str]:
    return [gpu.label for gpu in found.visible_gpus]


class TestOneCard:
    def test_every_fact_about_a_card_is_read(self) -> None:
        found = hardware("rtx4090-desktop")
        (gpu,) = found.gpus
        assert (gpu.index, gpu.name, gpu.capability) == (0, "NVIDIA GeForce RTX 4090", (8, 9))
        assert gpu.uuid is not None
        assert gpu.uuid.startswith("GPU-")
        assert (gpu.total_bytes, gpu.free_bytes) == (24564 * MIB, (24564 - 771) * MIB)
        assert (found.driver.version, found.driver.cuda_version) == ("570.133.07", (12, 8))
        assert found.driver.problem == ""
        assert (gpu.cuda_cores, gpu.max_clock_mhz, gpu.pci_bus_id) == (16384, 3105, "00000000:01:00.0")
        assert found.visible_gpus == (gpu,)

    def test_an_idle_link_is_told_apart_from_what_the_slot_gives(self) -> None:
        link = hardware("rtx4090-desktop").gpus[0].pcie
        assert (link.generation, link.width, link.max_generation, link.max_width) == (1, 16, 4, 16)

    def test_eight_lanes_are_seen(self) -> None:
        assert hardware("rtx4060ti-16gb").gpus[0].pcie.max_width == 8

    def test_other_processes_are_listed_largest_first_by_program_alone(self) -> None:
        processes = hardware("rtx4090-desktop").gpus[0].processes
        assert processes is not None
        assert [(process.pid, process.name, process.used_bytes) for process in processes] == [
            (2210, "Xorg", 301 * MIB),
            (5121, "chrome", 290 * MIB),
            (2389, "gnome-shell", 84 * MIB),
        ]

    def test_this_process_is_not_another_one(self, tmp_path: Path) -> None:
        machine = recording("rtx4090-desktop") | {"pid": 2210}
        processes = look(machine, tmp_path).gpus[0].processes
        assert processes is not None
        assert [process.pid for process in processes] == [5121, 2389]

    def test_a_process_in_two_lists_counts_once_with_its_larger_size(self, tmp_path: Path) -> None:
        machine = recording("rtx4090-desktop")
        device = machine["nvml"]["devices"][0]
        device["nvmlDeviceGetComputeRunningProcesses"] = [{"pid": 5121, "usedGpuMemory": 400 * MIB}]
        processes = look(machine, tmp_path).gpus[0].processes
        assert processes is not None
        sizes = [(process.pid, process.used_bytes) for process in processes]
        assert sizes == [(5121, 400 * MIB), (2210, 301 * MIB), (2389, 84 * MIB)]

    def test_windows_hides_the_memory_of_processes_but_not_their_names(self) -> None:
        found = hardware("rtx5090-windows")
        processes = found.gpus[0].processes
        assert processes is not None
        assert [(process.name, process.used_bytes) for process in processes] == [
            ("explorer.exe", None),
            ("wallpaper64.exe", None),
        ]
        assert (found.system.system, found.system.name) == ("Windows", "Windows 11")
        assert found.gpus[0].capability == (12, 0)

    def test_processes_of_another_namespace_have_no_name(self) -> None:
        processes = hardware("a10g-docker").gpus[0].processes
        assert processes is not None
        assert [(process.pid, process.name) for process in processes] == [(41233, None)]

    def test_older_bindings_that_answer_in_bytes_are_understood(self, tmp_path: Path) -> None:
        machine = recording("rtx3090-desktop")
        device = machine["nvml"]["devices"][0]
        device.update(nvmlDeviceGetName=b"NVIDIA GeForce RTX 3090", nvmlDeviceGetPciInfo={"busId": b"00000000:01:00.0"})
        gpu = look(machine, tmp_path).gpus[0]
        assert (gpu.name, gpu.pci_bus_id) == ("NVIDIA GeForce RTX 3090", "00000000:01:00.0")


class TestMissingAnswers:
    def test_a_laptop_without_pcie_answers_has_an_empty_link(self) -> None:
        gpu = hardware("rtx4060-laptop-8gb").gpus[0]
        assert set(asdict(gpu.pcie).values()) == {None}
        assert gpu.cuda_cores is None
        assert gpu.total_bytes == 8188 * MIB

    def test_zero_lanes_mean_unknown(self, tmp_path: Path) -> None:
        machine = recording("rtx3090-desktop")
        machine["nvml"]["devices"][0].update(nvmlDeviceGetCurrPcieLinkWidth=0, nvmlDeviceGetMaxPcieLinkWidth=0)
        link = look(machine, tmp_path).gpus[0].pcie
        assert (link.width, link.max_width, link.max_generation) == (None, None, 4)

    def test_forbidden_process_lists_are_unknown_not_empty(self) -> None:
        assert hardware("l4-kubernetes").gpus[0].processes is None
        assert hardware("rtx3060-12gb").gpus[0].processes == ()

    @pytest.mark.parametrize("code", [2, 3, 4, 13, 999])
    def test_a_card_that_answers_nothing_is_still_a_card(self, tmp_path: Path, code: int) -> None:
        machine = recording("rtx3090-desktop")
        device = machine["nvml"]["devices"][0]
        machine["nvml"]["devices"][0] = {question: {"error": code} for question in device}
        machine["nvml"]["nvmlSystemGetDriverVersion"] = {"error": code}
        machine["nvml"]["nvmlSystemGetCudaDriverVersion_v2"] = {"error": code}
        found = look(machine, tmp_path)
        assert found.gpus == (hardware_gpu.Gpu(0),)
        assert found.driver == hardware_gpu.Driver()
        assert choose_gpu(found) == found.gpus[0]

    def test_names_that_the_bindings_lack_are_missing_answers(self) -> None:
        class OldNvml:
            def nvmlInit(self) -> None: ...
            def nvmlShutdown(self) -> None: ...
            def nvmlDeviceGetCount(self) -> int:
                return 1

            def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
                return index

        _, gpus = hardware_gpu.read_gpus(OldNvml(), own_pid=1)
        assert gpus == (hardware_gpu.Gpu(0),)

    @pytest.mark.parametrize("where", ["nvmlDeviceGetMemoryInfo", "handle"])
    def test_a_lost_card_says_so_and_is_not_used(self, tmp_path: Path, where: str) -> None:
        machine = recording("a100-80-pair")
        if where == "handle":
            machine["nvml"]["devices"][0] = {"error": 15}
        else:
            machine["nvml"]["devices"][0][where] = {"error": 15}
        found = look(machine, tmp_path)
        assert found.gpus[0].fault == "NVML error 15"
        assert labels(found) == ["1"]
        with pytest.raises(EnvironmentUnfitError, match=r"GPU 0 .* does not answer: NVML error 15"):
            choose_gpu(found, "0")


class TestDriver:
    @pytest.mark.parametrize(
        ("code", "problem"),
        [
            (12, "no_library"),
            (9, "not_loaded"),
            (18, "version_mismatch"),
            (4, "no_permission"),
            (15, "gpu_lost"),
            (999, "failed"),
        ],
    )
    def test_why_there_is_no_driver_is_kept_apart(self, tmp_path: Path, code: int, problem: str) -> None:
        machine = recording("rtx3090-desktop")
        machine["nvml"]["nvmlInit"] = {"error": code}
        found = look(machine, tmp_path)
        assert (found.driver.problem, found.driver.detail) == (problem, f"NVML error {code}")
        assert (found.gpus, found.visible_gpus, choose_gpu(found)) == ((), (), None)

    def test_the_codes_are_those_of_the_bindings(self) -> None:
        pynvml = pytest.importorskip("pynvml")
        for name, problem in [
            ("NVML_ERROR_LIBRARY_NOT_FOUND", "no_library"),
            ("NVML_ERROR_DRIVER_NOT_LOADED", "not_loaded"),
            ("NVML_ERROR_LIB_RM_VERSION_MISMATCH", "version_mismatch"),
            ("NVML_ERROR_NO_PERMISSION", "no_permission"),
            ("NVML_ERROR_GPU_IS_LOST", "gpu_lost"),
        ]:
            error = pynvml.NVMLError(getattr(pynvml, name))
            assert hardware_gpu.PROBLEM_OF_CODE[error.value] == problem
        assert hardware_gpu.SM_CLOCK == pynvml.NVML_CLOCK_SM

    def test_bindings_that_are_not_installed_are_a_problem_not_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pynvml", None)
        driver, gpus = hardware_gpu.read_gpus(own_pid=1)
        assert (driver.problem, gpus) == ("no_package", ())

    def test_a_driver_without_cards_is_no_problem(self, tmp_path: Path) -> None:
        machine = recording("rtx3090-desktop")
        machine["nvml"]["devices"] = []
        found = look(machine, tmp_path)
        assert (found.driver.problem, found.driver.version, found.gpus) == ("", "550.144.03", ())

    @pytest.mark.parametrize("name", ["rtx4090-desktop", "a100-40-mig"])
    def test_nvml_is_shut_down_as_often_as_it_is_opened(self, name: str) -> None:
        nvml = RecordedNvml(recording(name)["nvml"])
        hardware_gpu.read_gpus(nvml, own_pid=1)
        assert nvml.initialised == 0


class TestVisibleDevices:
    @pytest.mark.parametrize(
        ("setting", "expected"),
        [
            ("0", ["0"]),
            ("1", ["1"]),
            ("1,0", ["1", "0"]),
            (" 1 , 0 ", ["1", "0"]),
            ("", []),
            ("-1", []),
            ("NoDevFiles", []),
            ("0,7,1", ["0"]),  # the list ends at the first entry that names nothing
            ("0,-1,1", ["0"]),
            ("1,1", []),  # CUDA refuses a list that names a device twice
            ("1x,0", ["1", "0"]),
            ("GPU-00004091", ["1"]),
            ("GPU-00004091-5a1c-4e2f-9b3d-000000004091,GPU-00003061", ["1", "0"]),
            ("GPU-0000", []),  # fits both
            ("00004091", []),  # no card of that number
            ("gpu-00004091", []),
            (" GPU-00004091", []),
            ("GPU-", []),
            ("GPU-00004091-5A1C-4E2F", ["1"]),
            ("GPU-00004091,GPU-9,GPU-00003061", ["1"]),
            ("GPU-00004091,GPU-000040", []),  # twice the same
            ("1,GPU-00003061", ["1"]),  # numbers and UUIDs do not mix
            ("GPU-00004091,0", ["1"]),
            ("+1,-0", ["1", "0"]),
            ("1,,0", ["1"]),
            (",0", []),
        ],
    )
    def test_the_setting_is_read_as_cuda_reads_it(self, setting: str, expected: list[str]) -> None:
        found = hardware("rtx3060-and-4090", environment={"CUDA_VISIBLE_DEVICES": setting})
        assert labels(found) == expected
        assert found.cuda_visible_devices == setting
        assert len(found.gpus) == 2

    def test_without_the_setting_every_card_is_visible_in_bus_order(self, tmp_path: Path) -> None:
        machine = recording("rtx3060-and-4090")
        assert labels(look(machine, tmp_path)) == ["0", "1"]
        machine["nvml"]["devices"].reverse()
        swapped = look(machine, tmp_path)
        assert [gpu.name[-4:] for gpu in swapped.gpus] == ["4090", "3060"]
        assert labels(swapped) == ["1", "0"]

    @pytest.mark.parametrize(("order", "name"), [("PCI_BUS_ID", "3060"), ("FASTEST_FIRST", "4090")])
    def test_numbers_follow_the_order_that_is_asked_for(self, order: str, name: str) -> None:
        environment = {"CUDA_DEVICE_ORDER": order, "CUDA_VISIBLE_DEVICES": "0"}
        (gpu,) = hardware("rtx3060-and-4090", environment=environment).visible_gpus
        assert gpu.name.endswith(name)


class TestMig:
    def test_instances_have_their_own_memory_and_uuid(self) -> None:
        (card,) = hardware("a100-40-mig").gpus
        assert card.mig_enabled
        assert [instance.label for instance in card.instances] == ["0:0", "0:1"]
        assert [instance.total_bytes for instance in card.instances] == [19968 * MIB] * 2
        assert [instance.free_bytes for instance in card.instances] == [19956 * MIB, 11928 * MIB]
        assert all((instance.uuid or "").startswith("MIG-") for instance in card.instances)

    def test_what_only_cards_tell_is_inherited_and_what_is_shared_is_not(self) -> None:
        instance = hardware("a100-40-mig").gpus[0].instances[0]
        assert (instance.capability, instance.pcie.max_generation) == ((8, 0), 4)
        assert instance.cuda_cores is None
        assert instance.processes == ()

    def test_cuda_sees_instances_in_place_of_their_card(self) -> None:
        assert labels(hardware("a100-40-mig")) == ["0:0", "0:1"]

    @pytest.mark.parametrize(
        ("setting", "expected"),
        [("MIG-00000002", ["0:1"]), ("0", ["0:0"]), ("GPU-0000a100", ["0:0"]), ("MIG-9", []), ("MIG-0000000", [])],
    )
    def test_instances_can_be_named_by_uuid(self, setting: str, expected: list[str]) -> None:
        assert labels(hardware("a100-40-mig", environment={"CUDA_VISIBLE_DEVICES": setting})) == expected

    @pytest.mark.parametrize(("wish", "label"), [("0", "0:0"), ("0:1", "0:1"), ("MIG-00000002", "0:1")])
    def test_the_flag_names_cards_and_instances(self, wish: str, label: str) -> None:
        gpu = choose_gpu(hardware("a100-40-mig"), wish)
        assert gpu is not None
        assert gpu.label == label

    def test_a_card_without_instances_cannot_be_used(self, tmp_path: Path) -> None:
        machine = recording("a100-40-mig")
        machine["nvml"]["devices"][0]["instances"] = []
        found = look(machine, tmp_path)
        assert (found.visible_gpus, choose_gpu(found)) == ((), None)
        with pytest.raises(InputError, match="has no MIG instance"):
            choose_gpu(found, "0")

    def test_mig_switched_off_is_an_ordinary_card(self, tmp_path: Path) -> None:
        machine = recording("a100-40-mig")
        machine["nvml"]["devices"][0]["nvmlDeviceGetMigMode"] = [0, 1]
        found = look(machine, tmp_path)
        assert not found.gpus[0].mig_enabled
        assert labels(found) == ["0"]


class TestChoice:
    @pytest.mark.parametrize(
        ("name", "label"),
        [
            ("rtx4090-desktop", "0"),
            ("rtx3060-and-4090", "1"),  # the larger
            ("a100-80-pair", "1"),  # the idle one of equals
            ("a100-40-mig", "0:0"),
        ],
    )
    def test_the_best_device_is_chosen_unasked(self, name: str, label: str) -> None:
        gpu = choose_gpu(hardware(name))
        assert gpu is not None
        assert gpu.label == label

    def test_a_smaller_idle_card_is_chosen_before_a_larger_busy_one(self, tmp_path: Path) -> None:
        machine = recording("a100-80-pair")
        machine["nvml"]["devices"][1]["nvmlDeviceGetMemoryInfo"] = {"total": 40 * GIB, "free": 39 * GIB}
        gpu = choose_gpu(look(machine, tmp_path))
        assert gpu is not None
        assert gpu.index == 1

    def test_of_one_class_the_newer_is_chosen(self, tmp_path: Path) -> None:
        machine = recording("rtx3090-desktop")
        machine["nvml"]["devices"] += recording("rtx4090-desktop")["nvml"]["devices"]
        gpu = choose_gpu(look(machine, tmp_path))
        assert gpu is not None
        assert gpu.name.endswith("4090")

    def test_an_old_card_with_more_memory_is_not_preferred(self, tmp_path: Path) -> None:
        machine = recording("rtx3060-and-4090")
        machine["nvml"]["devices"][1]["nvmlDeviceGetCudaComputeCapability"] = [6, 1]
        gpu = choose_gpu(look(machine, tmp_path))
        assert gpu is not None
        assert gpu.index == 0

    def test_the_users_own_order_comes_before_ours(self) -> None:
        found = hardware("a100-80-pair", environment={"CUDA_VISIBLE_DEVICES": "0,1"})
        assert choose_gpu(found) == found.gpus[0]

    @pytest.mark.parametrize("wish", ["1", " 1 ", "GPU-00004091", "gpu-00004091", "00004091"])
    def test_the_flag_takes_numbers_and_beginnings_of_uuids(self, wish: str) -> None:
        found = hardware("rtx3060-and-4090")
        assert choose_gpu(found, wish) == found.gpus[1]

    @pytest.mark.parametrize(
        ("wish", "setting", "message"),
        [
            ("2", None, "--gpu 2 fits no GPU here"),
            ("cuda:0", None, "fits no GPU here"),
            ("", None, "fits no GPU here"),
            ("GPU-0000", None, "fits 2 GPUs: GPU-00003061.*GPU-00004091"),
            ("0", "1", "RTX 3060.* is hidden by CUDA_VISIBLE_DEVICES='1'"),
            ("0", "", "is hidden by CUDA_VISIBLE_DEVICES=''"),
        ],
    )
    def test_a_wish_that_cannot_be_met_names_the_choices(self, wish: str, setting: str | None, message: str) -> None:
        environment = {} if setting is None else {"CUDA_VISIBLE_DEVICES": setting}
        with pytest.raises(InputError, match=message) as caught:
            choose_gpu(hardware("rtx3060-and-4090", environment=environment), wish)
        assert (
            "talk doctor" in caught.value.hint if setting == "" else "1 (NVIDIA GeForce RTX 4090)" in caught.value.hint
        )

    @pytest.mark.parametrize("name", ["no-gpu-laptop", "driver-mismatch"])
    def test_a_wish_on_a_machine_without_gpus_is_the_environments_fault(self, name: str) -> None:
        assert choose_gpu(hardware(name)) is None
        with pytest.raises(EnvironmentUnfitError, match="no usable NVIDIA GPU"):
            choose_gpu(hardware(name), "0")

    def test_the_run_is_tied_to_the_chosen_card(self) -> None:
        found = hardware("rtx3060-and-4090")
        assert cuda_environment(found, found.gpus[1]) == {
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "CUDA_VISIBLE_DEVICES": "GPU-00004091-5a1c-4e2f-9b3d-000000004091",
        }

    def test_the_variables_lead_back_to_the_chosen_device(self) -> None:
        for name in ("rtx3060-and-4090", "a100-40-mig", "a100-80-pair"):
            found = hardware(name)
            for gpu in found.visible_gpus:
                assert visible_gpus(found.gpus, cuda_environment(found, gpu)) == (gpu,)

    def test_the_run_is_tied_to_several_cards_in_their_order(self) -> None:
        found = hardware("rtx3060-and-4090")
        both = choose_gpus(found, found.gpus[1], 2)
        assert both == (found.gpus[1], found.gpus[0])
        assert visible_gpus(found.gpus, cuda_environment(found, *both)) == both

    def test_cards_like_the_first_come_before_others(self) -> None:
        found = hardware("a100-80-pair")
        other = replace(found.gpus[0], index=2, name="NVIDIA H200", uuid="GPU-2", total_bytes=150 << 30)
        three = replace(found, gpus=(other, *found.gpus), visible_gpus=(other, *found.gpus))
        assert choose_gpus(three, found.gpus[0], 2) == found.gpus

    def test_a_single_card_needs_no_variables(self) -> None:
        found = hardware("rtx4090-desktop")
        assert cuda_environment(found, found.gpus[0]) == {}
