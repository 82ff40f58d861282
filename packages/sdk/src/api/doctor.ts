// What `sf doctor` and `GET /v1/doctor` say: one check per thing that a host needs, with the mend when
// it is not as it should be. The agent makes those that need its knowledge, `sf` the others.

import { z } from 'zod';

export const doctorCheckSchema = z.object({
  /** One or two words, unique among the checks of a report. */
  name: z.string(),
  /** `fail`: no VM can be forked here. `warn`: something is slower or not possible, as said. */
  status: z.enum(['ok', 'warn', 'fail']),
  /** What was found. */
  message: z.string(),
  /** What to do about it. */
  mend: z.string().optional(),
});
export type DoctorCheck = z.infer<typeof doctorCheckSchema>;

export const doctorReportSchema = z.object({ checks: z.array(doctorCheckSchema) });
export type DoctorReport = z.infer<typeof doctorReportSchema>;
