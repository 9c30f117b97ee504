/*
 * Prints what ublk/internal/sys must agree with: constants, sizes and offsets of linux/ublk_cmd.h, one
 * a line. abi.golden is its output for the newest header, whose path is UBLK_CMD_H:
 *
 *	cc -DUBLK_CMD_H='"PATH/include/uapi/linux/ublk_cmd.h"' -o abi abi.c && ./abi > abi.golden
 */
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <linux/ioctl.h>
#include UBLK_CMD_H

#define C(name) printf("const %s %#llx\n", #name, (unsigned long long)(name))
#define S(type) printf("size %s %zu\n", #type, sizeof(struct type))
#define F(type, field) \
	printf("field %s.%s %zu %zu\n", #type, #field, offsetof(struct type, field), \
	       sizeof(((struct type *)0)->field))

static void constants(void)
{
	C(UBLK_U_CMD_GET_QUEUE_AFFINITY); C(UBLK_U_CMD_GET_DEV_INFO); C(UBLK_U_CMD_ADD_DEV);
	C(UBLK_U_CMD_DEL_DEV); C(UBLK_U_CMD_START_DEV); C(UBLK_U_CMD_STOP_DEV);
	C(UBLK_U_CMD_SET_PARAMS); C(UBLK_U_CMD_GET_PARAMS); C(UBLK_U_CMD_START_USER_RECOVERY);
	C(UBLK_U_CMD_END_USER_RECOVERY); C(UBLK_U_CMD_GET_DEV_INFO2); C(UBLK_U_CMD_GET_FEATURES);
	C(UBLK_U_CMD_DEL_DEV_ASYNC); C(UBLK_U_CMD_UPDATE_SIZE); C(UBLK_U_CMD_QUIESCE_DEV);
	C(UBLK_U_CMD_TRY_STOP_DEV); C(UBLK_U_CMD_REG_BUF); C(UBLK_U_CMD_UNREG_BUF);
	C(UBLK_U_IO_FETCH_REQ); C(UBLK_U_IO_COMMIT_AND_FETCH_REQ); C(UBLK_U_IO_REGISTER_IO_BUF);
	C(UBLK_U_IO_UNREGISTER_IO_BUF);
	C(UBLK_IO_RES_OK); C(UBLK_IO_RES_ABORT); C(UBLK_FEATURES_LEN); C(UBLK_MAX_QUEUE_DEPTH);
	C(UBLK_MAX_NR_QUEUES); C(UBLKSRV_CMD_BUF_OFFSET); C(UBLKSRV_IO_BUF_OFFSET);
	C(UBLK_IO_BUF_BITS); C(UBLK_TAG_OFF); C(UBLK_TAG_BITS); C(UBLK_QID_OFF); C(UBLK_QID_BITS);
	C(UBLKSRV_IO_INTEGRITY_FLAG); C(UBLK_SHMEM_BUF_READ_ONLY); C(UBLK_SHMEM_ZC_OFF_MASK);
	C(UBLK_SHMEM_ZC_IDX_OFF); C(UBLK_SHMEM_ZC_IDX_MASK); C(UBLK_AUTO_BUF_REG_FALLBACK);
	C(UBLK_MIN_SEGMENT_SIZE);
	C(UBLK_F_SUPPORT_ZERO_COPY); C(UBLK_F_URING_CMD_COMP_IN_TASK); C(UBLK_F_NEED_GET_DATA);
	C(UBLK_F_USER_RECOVERY); C(UBLK_F_USER_RECOVERY_REISSUE); C(UBLK_F_UNPRIVILEGED_DEV);
	C(UBLK_F_CMD_IOCTL_ENCODE); C(UBLK_F_USER_COPY); C(UBLK_F_ZONED);
	C(UBLK_F_USER_RECOVERY_FAIL_IO); C(UBLK_F_UPDATE_SIZE); C(UBLK_F_AUTO_BUF_REG);
	C(UBLK_F_QUIESCE); C(UBLK_F_PER_IO_DAEMON); C(UBLK_F_BUF_REG_OFF_DAEMON); C(UBLK_F_BATCH_IO);
	C(UBLK_F_INTEGRITY); C(UBLK_F_SAFE_STOP_DEV); C(UBLK_F_NO_AUTO_PART_SCAN); C(UBLK_F_SHMEM_ZC);
	C(UBLK_F_IO_DESC_SIZE);
	C(UBLK_S_DEV_DEAD); C(UBLK_S_DEV_LIVE); C(UBLK_S_DEV_QUIESCED); C(UBLK_S_DEV_FAIL_IO);
	C(UBLK_IO_OP_READ); C(UBLK_IO_OP_WRITE); C(UBLK_IO_OP_FLUSH); C(UBLK_IO_OP_DISCARD);
	C(UBLK_IO_OP_WRITE_SAME); C(UBLK_IO_OP_WRITE_ZEROES);
	C(UBLK_IO_F_FAILFAST_DEV); C(UBLK_IO_F_FAILFAST_TRANSPORT); C(UBLK_IO_F_FAILFAST_DRIVER);
	C(UBLK_IO_F_META); C(UBLK_IO_F_FUA); C(UBLK_IO_F_NOUNMAP); C(UBLK_IO_F_SWAP);
	C(UBLK_IO_F_NEED_REG_BUF); C(UBLK_IO_F_INTEGRITY); C(UBLK_IO_F_SHMEM_ZC);
	C(UBLK_ATTR_READ_ONLY); C(UBLK_ATTR_ROTATIONAL); C(UBLK_ATTR_VOLATILE_CACHE); C(UBLK_ATTR_FUA);
	C(UBLK_PARAM_TYPE_BASIC); C(UBLK_PARAM_TYPE_DISCARD); C(UBLK_PARAM_TYPE_DEVT);
	C(UBLK_PARAM_TYPE_ZONED); C(UBLK_PARAM_TYPE_DMA_ALIGN); C(UBLK_PARAM_TYPE_SEGMENT);
	C(UBLK_PARAM_TYPE_INTEGRITY);
}

static void commands(void)
{
	S(ublksrv_ctrl_cmd);
	F(ublksrv_ctrl_cmd, dev_id); F(ublksrv_ctrl_cmd, queue_id); F(ublksrv_ctrl_cmd, len);
	F(ublksrv_ctrl_cmd, addr); F(ublksrv_ctrl_cmd, data); F(ublksrv_ctrl_cmd, dev_path_len);
	F(ublksrv_ctrl_cmd, pad); F(ublksrv_ctrl_cmd, reserved);
	S(ublksrv_ctrl_dev_info);
	F(ublksrv_ctrl_dev_info, nr_hw_queues); F(ublksrv_ctrl_dev_info, queue_depth);
	F(ublksrv_ctrl_dev_info, state); F(ublksrv_ctrl_dev_info, io_desc_size);
	F(ublksrv_ctrl_dev_info, max_io_buf_bytes); F(ublksrv_ctrl_dev_info, dev_id);
	F(ublksrv_ctrl_dev_info, ublksrv_pid); F(ublksrv_ctrl_dev_info, pad1);
	F(ublksrv_ctrl_dev_info, flags); F(ublksrv_ctrl_dev_info, ublksrv_flags);
	F(ublksrv_ctrl_dev_info, owner_uid); F(ublksrv_ctrl_dev_info, owner_gid);
	F(ublksrv_ctrl_dev_info, reserved1); F(ublksrv_ctrl_dev_info, reserved2);
	S(ublksrv_io_desc);
	F(ublksrv_io_desc, op_flags); F(ublksrv_io_desc, nr_sectors);
	F(ublksrv_io_desc, start_sector); F(ublksrv_io_desc, addr);
	S(ublksrv_io_cmd);
	F(ublksrv_io_cmd, q_id); F(ublksrv_io_cmd, tag); F(ublksrv_io_cmd, result);
	F(ublksrv_io_cmd, addr);
	S(ublk_shmem_buf_reg);
	F(ublk_shmem_buf_reg, addr); F(ublk_shmem_buf_reg, len); F(ublk_shmem_buf_reg, flags);
	F(ublk_shmem_buf_reg, reserved);
}

static void parameters(void)
{
	S(ublk_param_basic);
	F(ublk_param_basic, attrs); F(ublk_param_basic, logical_bs_shift);
	F(ublk_param_basic, physical_bs_shift); F(ublk_param_basic, io_opt_shift);
	F(ublk_param_basic, io_min_shift); F(ublk_param_basic, max_sectors);
	F(ublk_param_basic, chunk_sectors); F(ublk_param_basic, dev_sectors);
	F(ublk_param_basic, virt_boundary_mask);
	S(ublk_param_discard);
	F(ublk_param_discard, discard_alignment); F(ublk_param_discard, discard_granularity);
	F(ublk_param_discard, max_discard_sectors); F(ublk_param_discard, max_write_zeroes_sectors);
	F(ublk_param_discard, max_discard_segments); F(ublk_param_discard, reserved0);
	S(ublk_param_devt);
	F(ublk_param_devt, char_major); F(ublk_param_devt, char_minor);
	F(ublk_param_devt, disk_major); F(ublk_param_devt, disk_minor);
	S(ublk_param_zoned);
	F(ublk_param_zoned, max_open_zones); F(ublk_param_zoned, max_active_zones);
	F(ublk_param_zoned, max_zone_append_sectors); F(ublk_param_zoned, reserved);
	S(ublk_param_dma_align);
	F(ublk_param_dma_align, alignment); F(ublk_param_dma_align, pad);
	S(ublk_param_segment);
	F(ublk_param_segment, seg_boundary_mask); F(ublk_param_segment, max_segment_size);
	F(ublk_param_segment, max_segments); F(ublk_param_segment, pad);
	S(ublk_param_integrity);
	F(ublk_param_integrity, flags); F(ublk_param_integrity, max_integrity_segments);
	F(ublk_param_integrity, interval_exp); F(ublk_param_integrity, metadata_size);
	F(ublk_param_integrity, pi_offset); F(ublk_param_integrity, csum_type);
	F(ublk_param_integrity, tag_size); F(ublk_param_integrity, pad);
	S(ublk_params);
	F(ublk_params, len); F(ublk_params, types); F(ublk_params, basic); F(ublk_params, discard);
	F(ublk_params, devt); F(ublk_params, zoned); F(ublk_params, dma); F(ublk_params, seg);
	F(ublk_params, integrity);
}

int main(void)
{
	constants();
	commands();
	parameters();
	return 0;
}
