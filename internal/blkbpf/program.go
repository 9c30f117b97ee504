package blkbpf

import (
	"fmt"

	"github.com/cilium/ebpf/asm"
)

const (
	diskNameBytes = 32 // of struct gendisk

	tracepoint = "block_rq_issue"

	// license is that of the program below, not of this package: the kernel lets only programs
	// under the GPL, or under others as well, look into its structures.
	license = "Dual MIT/GPL"
)

// Registers of the program. Those from R6 on survive calls.
const (
	regRequest = asm.R6
	regSlot    = asm.R7
	regBio     = asm.R8
	regCgroup  = asm.R9
)

// program assembles what runs at the tracepoint. queues and disks are the descriptors of the table of queues and of
// its directory, self is the process that serves the devices.
//
// Pointers into the kernel's structures are followed with plain loads, which the verifier checks
// against the types and the kernel makes safe: a load through a wrong pointer or NULL gives 0.
func (l *layout) program(queues, disks, self int) asm.Instructions {
	var p asm.Instructions
	p = append(p, l.findQueue(disks)...)
	p = append(p, l.findSlot(queues)...)
	p = append(p, l.copyRequest()...)
	p = append(p, l.copyBio()...)
	p = append(p, l.copyTask(self)...)
	return append(p,
		asm.StoreMem(regSlot, slotCgroup, regCgroup, asm.DWord).WithSymbol("has-cgroup"),
		asm.StoreImm(regSlot, slotFilled, 1, asm.Word),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("out"),
		asm.Return(),
	)
}

// findQueue leaves the request in its register and the queue's place in R0, or ends the program: see directory.
func (l *layout) findQueue(disks int) asm.Instructions {
	p := asm.Instructions{
		asm.LoadMem(regRequest, asm.R1, 0, asm.DWord), // the tracepoint's only argument
		asm.LoadMem(asm.R2, regRequest, l.rqQueue, asm.DWord),
		asm.LoadMem(asm.R2, asm.R2, l.queueDisk, asm.DWord),
		asm.JEq.Imm(asm.R2, 0, "out"),
		asm.LoadMem(asm.R3, asm.R2, l.diskName, asm.DWord),
		asm.LoadMem(asm.R4, asm.R2, l.diskName+8, asm.DWord),
		asm.LoadMem(asm.R5, regRequest, l.rqHctx, asm.DWord),
		asm.LoadMem(asm.R5, asm.R5, l.hctxNumber, asm.Word),

		asm.Mov.Reg(asm.R0, asm.R4), // key.home
		asm.Mul.Imm(asm.R0, homeFactor),
		asm.Xor.Reg(asm.R0, asm.R3),
		asm.Mov.Reg(asm.R1, asm.R0),
		asm.RSh.Imm(asm.R1, 32),
		asm.Xor.Reg(asm.R0, asm.R1),
		asm.Mul.Imm32(asm.R0, homeFactor),
		asm.RSh.Imm32(asm.R0, homeShift),
		asm.Mov.Reg(asm.R1, asm.R5),
		asm.Mul.Imm(asm.R1, queueStep),
		asm.Add.Reg(asm.R0, asm.R1),
		asm.And.Imm(asm.R0, 1<<directoryBits-1),

		asm.LoadMapValue(asm.R1, disks, 0),
		asm.Mov.Reg(asm.R2, asm.R0),
		asm.Mul.Imm(asm.R2, entryBytes),
		asm.Add.Reg(asm.R1, asm.R2),
	}
	next := func(try int) string {
		if try == directoryTries {
			return "out"
		}
		return fmt.Sprintf("try-%d", try)
	}
	for try := range directoryTries {
		at := int16(try * entryBytes)
		first := asm.LoadMem(asm.R2, asm.R1, at+entryName, asm.DWord)
		if try > 0 {
			first = first.WithSymbol(next(try))
		}
		p = append(p,
			first,
			asm.JEq.Imm(asm.R2, emptyName, "out"),
			asm.JNE.Reg(asm.R2, asm.R3, next(try+1)),
			asm.LoadMem(asm.R2, asm.R1, at+entryRest, asm.DWord),
			asm.JNE.Reg(asm.R2, asm.R4, next(try+1)),
			asm.LoadMem(asm.R2, asm.R1, at+entryQueue, asm.DWord),
			asm.JNE.Reg(asm.R2, asm.R5, next(try+1)),
			asm.Add.Imm(asm.R0, int32(try)),
			asm.Ja.Label("found"),
		)
	}
	return p
}

// findSlot leaves the request's slot in its register, or ends the program.
func (l *layout) findSlot(queues int) asm.Instructions {
	const key = -8 // on the stack
	return asm.Instructions{
		asm.StoreMem(asm.RFP, key, asm.R0, asm.Word).WithSymbol("found"),
		asm.LoadMapPtr(asm.R1, queues),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, key),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),

		asm.Mov.Reg(asm.R1, asm.R0), // the queue's slots
		asm.LoadMem(asm.R2, regRequest, l.rqTag, asm.Word),
		asm.StoreMem(asm.RFP, key, asm.R2, asm.Word),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, key),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.Mov.Reg(regSlot, asm.R0),
	}
}

func (l *layout) copyRequest() asm.Instructions {
	return asm.Instructions{
		asm.LoadMem(asm.R2, regRequest, l.rqSector, asm.DWord),
		asm.StoreMem(regSlot, slotSector, asm.R2, asm.DWord),
		asm.LoadMem(asm.R2, regRequest, l.rqBytes, asm.Word),
		asm.StoreMem(regSlot, slotBlkLen, asm.R2, asm.Word),
		asm.LoadMem(asm.R2, regRequest, l.rqFlags, asm.Word),
		asm.StoreMem(regSlot, slotFlags, asm.R2, asm.Word),
	}
}

// copyBio takes priority, write hint and cgroup from the first bio. A flush has none.
func (l *layout) copyBio() asm.Instructions {
	p := asm.Instructions{
		asm.LoadMem(regBio, regRequest, l.rqBio, asm.DWord),
		asm.Mov.Imm(asm.R2, 0),
		asm.Mov.Imm(asm.R3, 0),
		asm.Mov.Imm(regCgroup, 0),
		asm.JEq.Imm(regBio, 0, "no-bio"),
		asm.LoadMem(asm.R2, regBio, l.bioPrio, asm.Half),
		asm.LoadMem(asm.R3, regBio, l.bioHint, asm.Byte),
	}
	if l.hasBlkcg {
		p = append(p, follow(regCgroup, regBio,
			l.bioBlkg, l.blkgBlkcg, l.blkcgGroup, l.groupNode, l.nodeID)...)
	}
	return append(p,
		asm.StoreMem(regSlot, slotIOPrio, asm.R2, asm.Half).WithSymbol("no-bio"),
		asm.StoreMem(regSlot, slotHint, asm.R3, asm.Byte),
	)
}

// copyTask takes what there is to know of the running task, which is the issuer or works for it. A
// kernel thread's cgroup says nothing. The server counts as a kernel thread: what it issues are the
// kernel's reads for partitions when a device starts (so on 6.12; on 7.3 a kernel thread does that).
func (l *layout) copyTask(self int) asm.Instructions {
	p := asm.Instructions{
		asm.FnGetCurrentTaskBtf.Call(),
		asm.LoadMem(asm.R3, asm.R0, l.taskFlags, asm.Word),
		asm.LoadMem(asm.R2, asm.R0, l.taskPID, asm.Word),
		asm.StoreMem(regSlot, slotPID, asm.R2, asm.Word),
		asm.JNE.Imm(asm.R2, int32(self), "not-self"),
		asm.Or.Imm(asm.R3, taskKernel),
		asm.StoreMem(regSlot, slotTask, asm.R3, asm.Word).WithSymbol("not-self"),
		asm.LoadMem(asm.R2, asm.R0, l.taskCred, asm.DWord),
		asm.LoadMem(asm.R2, asm.R2, l.credUID, asm.Word),
		asm.StoreMem(regSlot, slotUID, asm.R2, asm.Word),
	}
	if l.hasCgroups {
		p = append(p, asm.JSet.Imm(asm.R3, taskKernel, "has-cgroup"),
			asm.JGT.Imm(regCgroup, RootCgroup, "has-cgroup"))
		p = append(p, follow(regCgroup, asm.R0,
			l.taskCgroups, l.cssSetGroup, l.groupNode, l.nodeID)...)
	}
	return p
}

// follow loads from the first offset at src a pointer, from the next offset there another one, and
// so on, and leaves the last value, of 8 bytes, in dst: 0 if any of the pointers is NULL.
func follow(dst, src asm.Register, offsets ...int16) asm.Instructions {
	var p asm.Instructions
	for _, at := range offsets {
		p = append(p, asm.LoadMem(dst, src, at, asm.DWord))
		src = dst
	}
	return p
}
