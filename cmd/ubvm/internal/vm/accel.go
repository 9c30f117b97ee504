package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"ubcache/cmd/ubvm/internal/frame"
	"ubcache/cmd/ubvm/internal/progress"
)

// AccelEnv chooses the acceleration without a trial: kvm or tcg.
const AccelEnv = "UBVM_ACCEL"

// trialTime is enough for a boot under KVM several times over.
const trialTime = 20 * time.Second

// ChooseAccel says how to run guests on this machine. /dev/kvm may exist and not work (nested
// virtualization that aborts or hangs the guest), so a guest is booted with it; the verdict is kept
// in the cache until the host boots again. trial is a complete configuration but for Accel and Job.
func ChooseAccel(ctx context.Context, cache string, trial Config) (Accel, error) {
	switch forced := Accel(os.Getenv(AccelEnv)); forced {
	case KVM, TCG:
		return forced, nil
	case "":
	default:
		return "", fmt.Errorf("%s=%s: want kvm or tcg", AccelEnv, forced)
	}
	kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return TCG, nil
	}
	kvm.Close()
	bootID, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return TCG, nil
	}
	id := strings.TrimSpace(string(bootID))
	note := filepath.Join(cache, "accel")
	if text, err := os.ReadFile(note); err == nil {
		if boot, verdict, ok := strings.Cut(strings.TrimSpace(string(text)), " "); ok && boot == id {
			return Accel(verdict), nil
		}
	}
	done := progress.Start("trying KVM")
	trial.Accel = KVM
	trial.Job = frame.Job{Steps: []frame.Step{{Name: "trial", Args: []string{"true"}}}}
	trial.Timeout, trial.Disks, trial.Files, trial.OutDir = trialTime, nil, nil, ""
	trial.Stdout, trial.Stderr, trial.Stdin = io.Discard, io.Discard, nil
	trial.OnReady, trial.OnExit = nil, nil
	_, err = Run(ctx, &trial)
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	done()
	verdict := KVM
	if err != nil {
		verdict = TCG
		var guest *GuestError
		if errors.As(err, &guest) {
			progress.Note("KVM does not work here (%s): using emulation", guest.What)
		} else {
			first, _, _ := strings.Cut(err.Error(), "\n")
			progress.Note("KVM does not work here (%s): using emulation", first)
		}
	}
	return verdict, os.WriteFile(note, []byte(id+" "+string(verdict)+"\n"), 0o644)
}
