"""procstar-ecs: one AWS ECS task a run, with an agent in it that lives as long as the run.

spec      what a job says, checked; what the kernel's calls do
sizes     gigabytes and vCPUs to what ECS is asked for
request   the parameters of RunTask, and what is shown of a task
aws       boto3, which is imported here and nowhere else, once the first call is made; its errors
calls     when calls are made: at a bounded rate, again after a while where that may help
told      what AWS tells of a task, in a sentence
task      one task, as the server knows it
sweep     tasks that no run needs
tasks     the life of tasks: launched, watched, stopped
"""
